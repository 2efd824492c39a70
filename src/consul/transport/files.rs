//! The files of certificates and keys: read together, so that what is judged is what is used.

use std::path::PathBuf;

use super::settings::{BadSettings, ConsulSettings, read};
use crate::certificates::{Credentials, Source};

/// The content of the files.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// The certificates to trust in place of the system's.
    pub(super) authorities: Option<Source>,
    /// The certificate to show, and its key.
    pub(super) identity: Option<(Source, Source)>,
}

impl Files {
    pub(super) fn read(settings: &ConsulSettings) -> Result<Self, BadSettings> {
        let source = |file: &PathBuf| {
            let text = read(file)?;
            Ok::<_, BadSettings>(Source { from: file.display().to_string(), text })
        };
        let identity = match (&settings.client_cert, &settings.client_key) {
            (Some(certificate), Some(key)) => Some((source(certificate)?, source(key)?)),
            (None, None) => None,
            _ => return Err(BadSettings::HalfAPair),
        };
        Ok(Self { authorities: settings.ca_cert.as_ref().map(source).transpose()?, identity })
    }

    /// Judges what they hold.
    pub(super) fn credentials(&self, settings: &ConsulSettings) -> Result<Credentials, BadSettings> {
        // Whoever checks nothing needs nobody to trust.
        let authorities = self.authorities.as_ref().filter(|_| settings.ssl_verify);
        let identity = self.identity.as_ref().map(|(certificate, key)| (certificate, key));
        Ok(Credentials::new(authorities, identity)?.followed())
    }
}
