//! Plots, as SVG: a figure over the number of instances, both in powers of ten, so that what grows in proportion is a straight line.

use std::fmt::Write;

/// The figures of a program, by the number of instances.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 3] = ["#2a6fbb", "#c0562a", "#5c8a3a"];

/// A range of values in powers of ten, and how long it is drawn.
struct Axis {
    from: i32,
    to: i32,
    length: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, length: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
        let most = values.fold(0.0, f64::max).log10().ceil();
        #[allow(clippy::cast_possible_truncation, reason = "whole powers of ten of what was measured")]
        let (from, to) = (least as i32, most as i32);
        Self { from, to: to.max(from + 1), length }
    }

    fn place(&self, value: f64) -> f64 {
        (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from) * self.length
    }

    fn powers(&self) -> impl Iterator<Item = f64> + use<> {
        (self.from..=self.to).map(|power| 10f64.powi(power))
    }
}

/// A plot; none where nothing above 0 was measured. What is 0 has no place in powers of ten and is left out.
pub(crate) fn svg(title: &str, mut series: Vec<Series>) -> Option<String> {
    for series in &mut series {
        series.points.retain(|(_, value)| *value > 0.0);
    }
    series.retain(|series| !series.points.is_empty());
    let all = series.iter().flat_map(|series| series.points.iter().copied());
    all.clone().next()?;
    let across = Axis::of(all.clone().map(|(instances, _)| instances), WIDTH);
    let up = Axis::of(all.map(|(_, value)| value), HEIGHT);
    let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
    let place = |(instances, value): (f64, f64)| (LEFT + across.place(instances), bottom - up.place(value));

    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="20" font-size="14">{title}</text>
"##,
        right + 90.0,
        bottom + 50.0
    );
    // Writing to a string cannot fail.
    for power in across.powers() {
        let x = LEFT + across.place(power);
        _ = writeln!(svg, r##"<path d="M{x:.0} {TOP}V{bottom}" stroke="#dddddd"/>"##);
        _ = writeln!(svg, r#"<text x="{x:.0}" y="{}" text-anchor="middle">{power}</text>"#, bottom + 18.0);
    }
    _ = writeln!(
        svg,
        r#"<text x="{}" y="{}" text-anchor="middle">instances</text>"#,
        LEFT + WIDTH / 2.0,
        bottom + 38.0
    );
    for power in up.powers() {
        let y = bottom - up.place(power);
        _ = writeln!(svg, r##"<path d="M{LEFT} {y:.0}H{right}" stroke="#dddddd"/>"##);
        _ = writeln!(svg, r#"<text x="{}" y="{:.0}" text-anchor="end">{power}</text>"#, LEFT - 6.0, y + 4.0);
    }
    for (series, colour) in series.iter().zip(COLOURS) {
        let places: Vec<(f64, f64)> = series.points.iter().copied().map(place).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.0},{y:.0}")).collect();
        _ = writeln!(svg, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, path.join(" "));
        for (x, y) in &places {
            _ = writeln!(svg, r#"<circle cx="{x:.0}" cy="{y:.0}" r="3" fill="{colour}"/>"#);
        }
        if let Some((x, y)) = places.last() {
            let name = series.name;
            _ = writeln!(svg, r#"<text x="{:.0}" y="{:.0}" fill="{colour}">{name}</text>"#, x + 8.0, y + 4.0);
        }
    }
    svg.push_str("</svg>\n");
    Some(svg)
}
