//! Which values the chart refuses, and in which words.
//!
//! `values.schema.json` is written by hand up to its first definition that begins with `io.k8s`. These are the fields of
//! pods that the values take over as they are, by the word of the real apiserver, and closed: it would refuse an unknown
//! field too, but in the middle of an installation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use lictor_testbed::WorkDir;
use serde_json::{Map, Value, json};

use crate::helm::{Helm, RELEASE, chart, with};
use crate::manifests::servers;
use crate::{check_file, read};

const SCHEMA: &str = "charts/lictor/values.schema.json";
const FROM_KUBERNETES: &str = "    \"io.k8s.";

/// The kinds of volumes that the Pod Security level `restricted` allows, but for `ephemeral`, which nobody needs here.
///
/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>
const VOLUMES: [&str; 7] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"];

#[tokio::test]
async fn what_kubernetes_defines_is_as_it_says() -> Result<()> {
    let mut defined = BTreeMap::new();
    for group in ["api/v1", "apis/networking.k8s.io/v1"] {
        let text = servers().await?.get(&format!("/openapi/v3/{group}")).await?;
        let mut document: Value = serde_json::from_str(&text)?;
        let schemas = document["components"]["schemas"].as_object_mut().context("schemas")?;
        defined.extend(std::mem::take(schemas));
    }
    let schema = read(SCHEMA);
    let head = schema.split(FROM_KUBERNETES).next().context("a file")?;
    let mut wanted: BTreeSet<String> = head.split('"').filter_map(definition).collect();
    let mut lines = BTreeMap::new();
    while let Some(name) = wanted.iter().find(|name| !lines.contains_key(*name)).cloned() {
        let found = defined.get(&name).with_context(|| format!("Kubernetes has no {name}"))?;
        let closed = closed(&name, found);
        wanted.extend(closed.to_string().split('"').filter_map(definition));
        lines.insert(name, closed);
    }
    ensure!(lines.len() > 20, "this test is blind: {lines:#?}");
    let mut whole = head.to_owned();
    for (at, (name, closed)) in lines.iter().enumerate() {
        let _ = writeln!(whole, "    {}: {closed}{}", json!(name), if at + 1 < lines.len() { "," } else { "" });
    }
    check_file(SCHEMA, &format!("{whole}  }}\n}}\n"));
    Ok(())
}

/// The name in a reference to something of Kubernetes.
fn definition(text: &str) -> Option<String> {
    text.strip_prefix("#/definitions/").filter(|name| name.starts_with("io.k8s.")).map(ToOwned::to_owned)
}

/// A definition of Kubernetes with nothing but what tells right from wrong, which takes no other fields.
fn closed(name: &str, schema: &Value) -> Value {
    let Value::Object(schema) = schema else { return schema.clone() };
    // Every reference stands in an `allOf` of its own there, for the sake of a default beside it.
    if let Some(Value::Array(all)) = schema.get("allOf")
        && let [only] = all.as_slice()
    {
        return closed("", only);
    }
    let mut kept = Map::new();
    for (key, value) in schema {
        match key.as_str() {
            "type" | "enum" | "required" => {
                kept.insert(key.clone(), value.clone());
            }
            "$ref" => {
                let target = value.as_str().unwrap_or_default().replace("#/components/schemas/", "#/definitions/");
                kept.insert(key.clone(), target.into());
            }
            "oneOf" => {
                let all = value.as_array().into_iter().flatten().map(|one| closed("", one)).collect();
                kept.insert(key.clone(), Value::Array(all));
            }
            "items" | "additionalProperties" => {
                kept.insert(key.clone(), closed("", value));
            }
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                let taken = |field: &str| !name.ends_with(".Volume") || field == "name" || VOLUMES.contains(&field);
                let fields = fields.filter(|(field, _)| taken(field));
                let fields: Map<_, _> = fields.map(|(field, value)| (field.clone(), closed("", value))).collect();
                kept.insert(key.clone(), fields.into());
                kept.insert("additionalProperties".to_owned(), false.into());
            }
            _ => {}
        }
    }
    kept.into()
}

#[test]
fn it_is_closed_everywhere() -> Result<()> {
    let schema: Value = serde_json::from_str(&read(SCHEMA))?;
    let mut open = Vec::new();
    look_for_openings("", &schema, &mut open);
    // A parent chart's values for all charts may be anything, and so may objects that the chart passes on.
    assert_eq!(open, ["/properties/extraObjects/items", "/properties/global"]);
    Ok(())
}

fn look_for_openings(at: &str, schema: &Value, open: &mut Vec<String>) {
    let Value::Object(fields) = schema else { return };
    // A schema names one type or several.
    let types =
        |named: &Value| named.is_string() || named.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    let may_be = |wanted: &str| {
        let named = &schema["type"];
        named == wanted || named.as_array().is_some_and(|all| all.iter().any(|one| one == wanted))
    };
    let is_schema = fields.get("type").is_some_and(types) || fields.contains_key("oneOf");
    if is_schema && may_be("object") {
        let others = &schema["additionalProperties"];
        let is_map = others.is_object() && schema["properties"].is_null();
        if !is_map && *others != json!(false) {
            open.push(at.to_owned());
        }
    }
    if is_schema && may_be("array") && schema["items"].is_null() {
        open.push(at.to_owned());
    }
    for (key, value) in fields {
        look_for_openings(&format!("{at}/{key}"), value, open);
    }
}

/// What is in the values is in the schema, or `helm lint` fails; and the other way round here.
#[test]
fn every_setting_has_a_default() -> Result<()> {
    let schema: Value = serde_json::from_str(&read(SCHEMA))?;
    let values: Value = serde_saphyr::from_str(&read("charts/lictor/values.yaml"))?;
    let mut lacking = Vec::new();
    look_for_defaults("", &schema, &values, &mut lacking);
    assert!(lacking.is_empty(), "no default in values.yaml, or not required in the schema: {lacking:#?}");
    Ok(())
}

fn look_for_defaults(at: &str, schema: &Value, value: &Value, lacking: &mut Vec<String>) {
    let Some(fields) = schema["properties"].as_object() else { return };
    // What takes single fields of Kubernetes' own has defaults for some.
    if at.ends_with("Probe") {
        return;
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in fields {
        let path = format!("{at}.{name}");
        // The values of a parent chart are its own, and null takes a value away.
        let may_be_missing = path.starts_with(".global") || path == ".replicaCount";
        if value.get(name).is_none() || (!required.contains(&name.as_str()) && !may_be_missing) {
            lacking.push(path.clone());
        }
        look_for_defaults(&path, field, &value[name], lacking);
    }
}

/// What is wrong, and the words for it.
const REFUSED: [(&str, &str); 93] = [
    // Names that there are not.
    ("consul.adress=http://consul:8500", "at '/consul': additional properties 'adress' not allowed"),
    ("replicas=3", "at '': additional properties 'replicas' not allowed"),
    ("crds.instal=false", "at '/crds': additional properties 'instal' not allowed"),
    ("resources.limit.cpu=1", "at '/resources': additional properties 'limit' not allowed"),
    ("podSecurityContext.runAsUsr=1", "at '/podSecurityContext': additional properties 'runAsUsr' not allowed"),
    ("securityContext.readonly=true", "at '/securityContext': additional properties 'readonly' not allowed"),
    ("tolerations[0].keys=a", "at '/tolerations/0': additional properties 'keys' not allowed"),
    ("affinity.nodeAfinity.a=b", "at '/affinity': additional properties 'nodeAfinity' not allowed"),
    ("extraEnv[0].name=A,extraEnv[0].val=b", "at '/extraEnv/0': additional properties 'val' not allowed"),
    ("livenessProbe.httpGet.path=/", "at '/livenessProbe': additional properties 'httpGet' not allowed"),
    ("initContainers[0].name=a,initContainers[0].imag=b", "at '/initContainers/0': additional properties 'imag' not"),
    ("policy.rules[0].tagz[0]=a", "at '/policy/rules/0': additional properties 'tagz' not allowed"),
    ("metrics.serviceMonitor.intervall=1m", "additional properties 'intervall' not allowed"),
    ("networkPolicy.metricsFrom[0].podSelectors.a=b", "additional properties 'podSelectors' not allowed"),
    // Values of another kind.
    ("registration=agents", "at '/registration': value must be one of 'agent', 'catalog'"),
    ("replicaCount=two", "at '/replicaCount': got string, want null or integer"),
    ("replicaCount=-1", "at '/replicaCount': minimum: got -1, want 0"),
    ("replicaCount=100", "at '/replicaCount': maximum: got 100, want 10"),
    ("maxInstances=0", "at '/maxInstances': minimum: got 0, want 1"),
    ("statusRate=0", "at '/statusRate': minimum: got 0, want 1"),
    ("concurrency=65", "at '/concurrency': maximum: got 65, want 64"),
    ("clusterName=Prod_1", "at '/clusterName': 'Prod_1' does not match pattern"),
    ("clusterUid=a/b,clusterName=c", "at '/clusterUid': 'a/b' does not match pattern"),
    ("class=Blue", "at '/class': 'Blue' does not match pattern"),
    ("watchNamespaces=shop", "at '/watchNamespaces': got string, want array"),
    ("watchNamespaces={shop,shop},clusterName=a", "at '/watchNamespaces': items at 0 and 1 are equal"),
    ("watchNamespaces={-},clusterName=a", "at '/watchNamespaces/0': '-' does not match pattern"),
    ("watchNodes=maybe", "at '/watchNodes': value must be one of 'auto', true, false"),
    ("allowStatic={10.0.0.1}", "at '/allowStatic/0': '10.0.0.1' does not match pattern"),
    ("allowSharedNames=maybe", "at '/allowSharedNames': got string, want boolean"),
    ("resyncInterval=30", "at '/resyncInterval': got number, want string"),
    ("resyncInterval=30 s", "at '/resyncInterval': '30 s' does not match pattern"),
    ("gracePeriod=1s30m", "at '/gracePeriod': '1s30m' does not match pattern"),
    ("log.format=logfmt", "at '/log/format': value must be one of 'text', 'json'"),
    ("consul.address=consul:8500", "at '/consul/address': 'consul:8500' does not match pattern"),
    ("consul.address=unix://run/consul.sock", "at '/consul/address': 'unix://run/consul.sock' does not match"),
    ("consul.proxy=socks5://proxy:1080", "at '/consul/proxy': 'socks5://proxy:1080' does not match"),
    ("policy.rules[0].name=a,policy.rules[0].namespaces={Pay}", "'Pay' does not match pattern"),
    ("policy.rules[0].name=a,policy.rules[0].namespaces={pay_x}", "'pay_x' does not match pattern"),
    (
        "policy.rules[0].name=a,policy.rules[0].namespaces={a},policy.rules[0].classes={Blue X}",
        "'Blue X' does not match",
    ),
    ("consul.token.existingSecret=A", "at '/consul/token/existingSecret': 'A' does not match pattern"),
    ("consul.token.key=", "at '/consul/token/key': '' does not match pattern"),
    ("consul.tls.verify=no", "at '/consul/tls/verify': got string, want boolean"),
    ("image.tag=true", "at '/image/tag': got boolean, want integer or string"),
    ("image.tag=a b", "at '/image/tag': 'a b' does not match pattern"),
    ("image.digest=sha256:1", "at '/image/digest': 'sha256:1' does not match pattern"),
    ("image.pullPolicy=Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("commonLabels.app\\.kubernetes\\.io/name=a", "at '/commonLabels/app.kubernetes.io~1name': false schema"),
    ("podLabels.a=b c", "at '/podLabels/a': 'b c' does not match pattern"),
    (
        "metrics.serviceMonitor.labels.helm\\.sh/chart=a",
        "at '/metrics/serviceMonitor/labels/helm.sh~1chart': false schema",
    ),
    ("metrics.dashboard.uid=a b", "at '/metrics/dashboard/uid': 'a b' does not match pattern"),
    ("uninstall.annotations.helm\\.sh/hook=test", "at '/uninstall/annotations/helm.sh~1hook': false schema"),
    ("podAnnotations.helm\\.sh/hook=test", "at '/podAnnotations/helm.sh~1hook': false schema"),
    ("podAnnotations.a b=c", "at '/podAnnotations': additional properties 'a b' not allowed"),
    ("extraVolumes[0].name=a,extraVolumes[0].hostPath.path=/", "additional properties 'hostPath' not allowed"),
    ("podDisruptionBudget.maxUnavailable=50", "at '/podDisruptionBudget/maxUnavailable'"),
    ("podDisruptionBudget.maxUnavailable=150%", "at '/podDisruptionBudget/maxUnavailable'"),
    ("admin.port=80", "at '/admin/port': minimum: got 80, want 1,024"),
    ("admin.address=localhost", "at '/admin/address': 'localhost' does not match pattern"),
    ("dnsPolicy=Cluster", "at '/dnsPolicy': value must be one of"),
    ("networkPolicy.apiServerPorts={}", "at '/networkPolicy/apiServerPorts/0': got string, want integer"),
    ("networkPolicy.dnsPorts={0}", "at '/networkPolicy/dnsPorts/0': minimum: got 0, want 1"),
    ("extraObjects={1}", "at '/extraObjects/0': got number, want string or object"),
    ("metrics.prometheusRule.disabledAlerts={Lictor}", "at '/metrics/prometheusRule/disabledAlerts/0'"),
    ("metrics.serviceMonitor.relabelings[0].action=swap", "value must be one of 'replace'"),
    ("consul=null", "missing property 'consul'"),
    // Values that do not go together.
    ("watchNamespaces={shop}", "clusterName: with watchNamespaces, Lictor may not read the uid"),
    ("consul.address=http://me:secret@consul", "consul.address: it may not hold a user or a password"),
    ("consul.address=http://me:secret\\,word/@consul", "consul.address: it may not hold a user or a password"),
    ("consul.proxy=http://me:secret@proxy:3128", "consul.proxy: it may not hold a user or a password"),
    ("clusterName=lictor", "clusterName: what is Lictor's own in Consul begins with lictor"),
    ("clusterName=lictor,registration=agent", "clusterName: what is Lictor's own in Consul begins with lictor"),
    ("clusterUid=a", "clusterUid: it needs a clusterName"),
    ("leaderElection.enabled=false", "replicaCount: without leaderElection.enabled there may be one replica only"),
    ("replicaCount=1,leaderElection.enabled=false", "uninstall.detach: without leaderElection.enabled the replica"),
    (
        "consul.address=unix:///run/consul.sock,consul.proxy=http://proxy:3128",
        "consul.proxy: no proxy leads to a unix socket",
    ),
    (
        "registration=agent,consul.address=http://a:8500\\,http://b:8500",
        "consul.address: several addresses are for registration: catalog",
    ),
    ("registration=agent,consul.esm=true", "consul.esm: it is for registration: catalog"),
    ("consul.tls.ca.existingSecret=a,consul.tls.ca.existingConfigMap=b", "existingConfigMap, not both"),
    ("consul.authMethod.name=a,consul.token.existingSecret=b", "give it or consul.token.existingSecret, not both"),
    ("consul.authMethod.name=a,registration=agent", "consul.authMethod.name: it is for registration: catalog"),
    ("consul.authMethod.datacenter=a", "need a name"),
    ("consul.authMethod.name=a b", "name"),
    ("crds.keep=false,uninstall.detach=false", "crds.keep: without it and without uninstall.detach"),
    ("uninstall.detach=false,uninstall.deregister=true", "uninstall.deregister: it needs uninstall.detach"),
    ("metrics.serviceMonitor.enabled=true,metrics.service.enabled=false", "it needs metrics.service.enabled"),
    ("holdMassUnready=61m", "holdMassUnready: 61m is not from 0s to 1h"),
    ("resyncInterval=0s", "resyncInterval: 0s is not from 1s to 24h"),
    ("resyncInterval=24h1s", "resyncInterval: 24h1s is not from 1s to 24h"),
    ("leaderElection.leaseDuration=1s", "leaderElection.leaseDuration: 1s is not from 2s to 5m"),
    ("gracePeriod=30s", "gracePeriod: it must be less than terminationGracePeriodSeconds"),
    ("metrics.serviceMonitor.scrapeTimeout=1m", "it may not be longer than the interval"),
    ("enabled=false", "enabled: it is for the condition of a parent chart"),
];

/// What Helm says of a command, without the command.
fn said(refusal: &str) -> &str {
    refusal.split_once("exit status").map_or(refusal, |(_, said)| said)
}

#[tokio::test]
async fn wrong_values_are_refused_in_words() -> Result<()> {
    let helm = Helm::new().await?;
    let mut wrong = Vec::new();
    for (set, words) in REFUSED {
        match helm.refusal(&["--set", set]).await {
            Ok(refusal) if set.contains(":secret") && said(&refusal).contains("secret") => {
                wrong.push(format!("{set}: it shows what is secret:\n{refusal}"));
            }
            Ok(refusal) if refusal.contains(words) => {}
            Ok(refusal) => wrong.push(format!("{set}: not in these words, {words:?}:\n{refusal}")),
            Err(error) => wrong.push(format!("{set}: {error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

#[tokio::test]
async fn nothing_is_installed_with_wrong_values() -> Result<()> {
    let servers = servers().await?;
    let helm = Helm::on(servers.kubeconfig()).await?;
    let namespace = servers.namespace("wrong").await?;
    let (name, chart) = (namespace.name(), chart());
    let chart = chart.to_str().context("a path")?;
    let wrong = ["install", RELEASE, chart, "--namespace", name, "--set", "registration=agents,crds.install=false"];
    let error = helm.run(wrong).await.expect_err("it is installed");
    ensure!(format!("{error:#}").contains("at '/registration': value must be one of"), "{error:#}");
    ensure!(helm.run(["list", "--short", "--namespace", name]).await?.is_empty(), "there is a release");
    let left = namespace.kubectl(&["get", "all,secrets,leases,roles", "--output=name"]).await?;
    ensure!(left.is_empty(), "{left}");
    namespace.delete().await;
    Ok(())
}

/// What the docs say to set, in files and on command lines, is taken.
#[tokio::test]
async fn what_the_docs_set_is_taken() -> Result<()> {
    let (helm, folder) = (Helm::new().await?, WorkDir::create("values")?);
    let mut blocks = 0;
    for name in ["docs/install.md", "charts/lictor/README.md"] {
        let page = read(name);
        for block in page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let file = folder.write("values.yaml", block)?;
            helm.template(&with(&file)).await.with_context(|| format!("{name}:\n{block}"))?;
            blocks += 1;
        }
        let mut words = page.split_whitespace();
        while words.any(|word| word == "--set") {
            let set = words.next().context("--set at the end")?;
            helm.template(&["--set", set]).await.with_context(|| name.to_owned())?;
        }
    }
    ensure!(blocks > 4, "{blocks} blocks were found: is this test blind?");
    Ok(())
}
