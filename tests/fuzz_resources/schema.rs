//! Random values that a schema takes.
//!
//! Types, bounds, enums, sets and maps are kept. Rules (CEL) are not looked at: what they want is for the [`author`] to
//! know, who is asked about each place. What the schema uses and this does not know is a panic, so that a new kind of
//! field does not go untried.

use std::collections::BTreeSet;

use fastrand::Rng;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::string::string_regex;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value};

use crate::author;

/// A source of values.
pub(crate) struct Generator {
    pub(crate) rng: Rng,
    /// Whether its author never breaks a rule that stands in the schema as one.
    pub(crate) careful: bool,
    /// Chance, as what makes texts of regular expressions has it.
    texts: TestRunner,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(32).collect();
        let texts = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        Self { rng, careful: false, texts }
    }

    /// True so often in a hundred.
    pub(crate) fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    /// Whether its author gets it wrong here.
    pub(crate) fn errs(&mut self, percent: u8) -> bool {
        self.chance(percent) && !self.careful
    }

    /// One of these.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.rng.usize(..from.len())]
    }

    /// A value for this schema at `path`, such as `checks[].http.path`.
    pub(crate) fn value(&mut self, schema: &JSONSchemaProps, path: &str) -> Value {
        if let Some(values) = &schema.enum_ {
            return values[self.rng.usize(..values.len())].0.clone();
        }
        if schema.x_kubernetes_int_or_string == Some(true) {
            return if self.rng.bool() { self.port().into() } else { self.string(schema, path).into() };
        }
        match schema.type_.as_deref() {
            Some("string") => self.string(schema, path).into(),
            Some("boolean") => self.rng.bool().into(),
            Some("integer") => self.integer(schema).into(),
            Some("array") => self.array(schema, path),
            Some("object") => self.object(schema, path),
            other => panic!("{path} is of type {other:?}: teach the generator what that is"),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "bounds of ports and counts are whole numbers")]
    fn integer(&mut self, schema: &JSONSchemaProps) -> i64 {
        let (least, most) = (schema.minimum.unwrap_or(0.0) as i64, schema.maximum.unwrap_or(65_535.0) as i64);
        match self.rng.u8(..10) {
            0 => least,
            1 => most,
            2..=5 => self.port().clamp(least, most),
            _ => self.rng.i64(least..=most),
        }
    }

    /// A number that is a port, or nearly one.
    fn port(&mut self) -> i64 {
        if self.errs(10) {
            return *self.pick(&[&-1, &0, &65_536]);
        }
        match self.rng.u8(..2) {
            0 => i64::from(author::PORTS[self.rng.usize(..author::PORTS.len())]),
            _ => self.rng.i64(1..=65_535),
        }
    }

    fn array(&mut self, schema: &JSONSchemaProps, path: &str) -> Value {
        let Some(JSONSchemaPropsOrArray::Schema(of)) = &schema.items else { panic!("{path} has no schema for items") };
        let (least, most) = (schema.min_items.unwrap_or(0), schema.max_items.unwrap_or(8));
        let (many, path) = (self.size(least, most), format!("{path}[]"));
        let mut seen = BTreeSet::new();
        let mut items = Vec::new();
        for _ in 0..many {
            let item = self.value(of, &path);
            let key = match schema.x_kubernetes_list_type.as_deref() {
                Some("set") => Some(item.to_string()),
                Some("map") => {
                    let keys = schema.x_kubernetes_list_map_keys.iter().flatten();
                    Some(keys.map(|key| item[key].clone()).collect::<Value>().to_string())
                }
                _ => None,
            };
            if key.is_none_or(|key| seen.insert(key)) {
                items.push(item);
            }
        }
        items.into()
    }

    fn object(&mut self, schema: &JSONSchemaProps, path: &str) -> Value {
        let mut fields = Map::new();
        if let Some(JSONSchemaPropsOrBool::Schema(of)) = &schema.additional_properties {
            let (least, most) = (schema.min_properties.unwrap_or(0), schema.max_properties.unwrap_or(8));
            let (key_path, value_path) = (format!("{path}{{key}}"), format!("{path}{{}}"));
            for _ in 0..self.size(least, most) {
                let key = author::text(self, &key_path).unwrap_or_else(|| self.any_text(1, 80));
                fields.insert(key, self.value(of, &value_path));
            }
            return fields.into();
        }
        let required: BTreeSet<&String> = schema.required.iter().flatten().collect();
        for (name, of) in schema.properties.iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if required.contains(name) || self.chance(author::how_often(&path)) {
                fields.insert(name.clone(), self.value(of, &path));
            }
        }
        fields.into()
    }

    /// Mostly a few; now and then as many as may be.
    fn size(&mut self, least: i64, most: i64) -> i64 {
        match self.rng.u8(..200) {
            0 => most,
            1..=3 => self.rng.i64(least..=most),
            _ => (least.max(1) + self.rng.i64(-1..3)).clamp(least, most),
        }
    }

    fn string(&mut self, schema: &JSONSchemaProps, path: &str) -> String {
        let bound = |bound: Option<i64>, default| bound.map_or(default, |bound| usize::try_from(bound).unwrap());
        let (least, most) = (bound(schema.min_length, 0), bound(schema.max_length, 300));
        let fits = |text: &String| (least..=most).contains(&text.chars().count());
        let written = author::text(self, path);
        assert!(!self.careful || written.as_ref().is_none_or(fits), "{path} may not be {written:?}");
        let mut text = match (written.filter(fits), &schema.pattern) {
            (Some(written), _) => written,
            (None, None) => self.any_text(least, most),
            (None, Some(pattern)) => loop {
                let text = self.matching(pattern.trim_start_matches('^').trim_end_matches('$'));
                if fits(&text) {
                    break text;
                }
            },
        };
        // Bounds count characters, and rules count bytes.
        while self.careful && text.len() > most {
            text.pop();
        }
        text
    }

    /// A text of this regular expression.
    pub(crate) fn matching(&mut self, expression: &str) -> String {
        let strings = string_regex(expression).expect("a regular expression");
        strings.new_tree(&mut self.texts).expect("a text").current()
    }

    /// Text of any kind.
    pub(crate) fn any_text(&mut self, least: usize, most: usize) -> String {
        let letters: Vec<char> = match self.rng.u8(..20) {
            0..=11 => "abcdefghijklmnopqrstuvwxyz0123456789-_".chars().collect(),
            12..=14 => "aA0._-/ :;,@%&?#[]{}()<>|\\'\"`~^*+=!$".chars().collect(),
            15..=17 => "aäßéñ字漢かаб𝒳🚦\u{a0}\u{200b}\u{202e}e\u{301}".chars().collect(),
            18 => "$${}['\"].podnameslabelsports ".chars().collect(),
            _ => "a\0\u{1}\t\n\r\u{1b}\u{7f}\u{85} ".chars().collect(),
        };
        let length = match self.rng.u8(..40) {
            0 => most,
            1 => least,
            2..=3 => self.rng.usize(least..=most),
            _ => self.rng.usize(least..=most.min(least + 12)),
        };
        std::iter::repeat_with(|| letters[self.rng.usize(..letters.len())]).take(length).collect()
    }
}
