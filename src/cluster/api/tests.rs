use super::*;

#[test]
fn the_crd_in_the_repository_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/consulservices.lictor.dev.yaml");
    if std::env::var_os("LICTOR_UPDATE").is_some() {
        std::fs::write(path, crd_yaml()).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == crd_yaml(), "{path} is out of date: run this test with LICTOR_UPDATE=1");
}

#[test]
fn the_yaml_says_what_the_crd_says() {
    let read: CustomResourceDefinition = serde_saphyr::from_str(&crd_yaml()).unwrap();
    assert_eq!(read, crd());
}

#[test]
fn the_smallest_resource_has_careful_defaults() {
    let resource: ConsulService = serde_saphyr::from_str(
        "{metadata: {name: user}, spec: {source: {service: {name: user}}, checks: [{name: a, http: {}}]}}",
    )
    .unwrap();
    let spec = serde_json::to_value(&resource.spec).unwrap();
    assert_eq!(
        spec,
        serde_json::json!({
            "source": { "service": { "name": "user" } },
            "readiness": "Mirror",
            "checks": [{ "name": "a", "http": { "path": "/", "scheme": "http", "method": "GET" }, "interval": "10s" }],
            "deletionPolicy": "Deregister",
        })
    );
}
