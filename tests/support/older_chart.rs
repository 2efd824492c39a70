//! The chart as it might have been in an earlier version, whose CRD lacks a field.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The field that came later. No test that uses this chart has it in a resource.
pub(crate) const LATER: &str = "enableTagOverride";

/// The fields of a spec in the CRD.
const FIELDS: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";

/// Writes it to a folder that is not there yet, and gives the folder.
pub(crate) fn older_chart(chart: &Path, older: PathBuf) -> Result<PathBuf> {
    copy(chart, &older)?;
    let file = older.join("files/consulservices.lictor.dev.yaml");
    let mut crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file)?)?;
    let fields = crd.pointer_mut(FIELDS).and_then(Value::as_object_mut).context(FIELDS)?;
    fields.remove(LATER).context(LATER)?;
    std::fs::write(&file, crd.to_string())?;
    Ok(older)
}

/// Whether a CRD has the field.
pub(crate) fn is_current(crd: &Value) -> bool {
    crd.pointer(FIELDS).is_some_and(|fields| fields.get(LATER).is_some())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            std::fs::copy(&from, &to)?;
        }
    }
    Ok(())
}
