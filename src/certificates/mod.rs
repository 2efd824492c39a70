//! Certificates and keys, judged before they are used and when a connection fails.
//!
//! In: PEM, where it comes from, and the time. Out: nothing, or one sentence that names the file, the fault and the
//! remedy. The TLS library says the same in words that only its authors understand, or after the fact: a file of
//! authorities that holds none is accepted, and then no server is. No private key is ever part of a sentence.

use std::error::Error;
use std::fmt;
use std::io;

use jiff::{SignedDuration, Timestamp};
use rustls::crypto::ring;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, InconsistentKeys, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

/// The text of a file, or of whatever else holds PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// Names the place where it comes from, as a sentence does: a path, for example.
    pub from: String,
    /// The text itself.
    pub text: Vec<u8>,
}

/// Says what a source is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A certificate to show.
    Certificate,
    /// The key for it.
    Key,
    /// Certificates to trust.
    Authorities,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "a certificate",
            Self::Key => "a private key",
            Self::Authorities => "the certificates of authorities",
        })
    }
}

/// Says what is wrong with a certificate or a key, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing in it.
    #[error("{from} is empty: it must hold {wanted} in PEM form")]
    Empty {
        /// The place where it is.
        from: String,
        /// Says what should be there.
        wanted: Wanted,
    },
    /// Not base64, where a kubeconfig must have it.
    #[error("{0} is not base64: encode the PEM text, for example with `base64 --wrap=0`")]
    NotBase64(String),
    /// The binary form.
    #[error(
        "{from} is in DER form: {wanted} must be in PEM form, as `openssl x509 -inform DER` and `openssl pkey -inform DER` print it"
    )]
    Der {
        /// The place where it is.
        from: String,
        /// Says what should be there.
        wanted: Wanted,
    },
    /// No PEM at all.
    #[error(
        "{from} is not in PEM form: it must hold {wanted}, which begins with a line such as -----BEGIN CERTIFICATE-----"
    )]
    NotPem {
        /// The place where it is.
        from: String,
        /// Says what should be there.
        wanted: Wanted,
    },
    /// PEM of another kind.
    #[error("{from} holds {found} and not {wanted}: name the file that does")]
    Other {
        /// The place where it is.
        from: String,
        /// Says what should be there.
        wanted: Wanted,
        /// Says what is there: the labels of its blocks.
        found: String,
    },
    /// A block of PEM that cannot be decoded.
    #[error("{from} is damaged ({why}): copy {wanted} there anew")]
    Damaged {
        /// The place where it is.
        from: String,
        /// Says what should be there.
        wanted: Wanted,
        /// The library's words.
        why: String,
    },
    /// X.509 version 1 or 2.
    #[error(
        "the certificate in {from} is of X.509 version {version}, and only version 3 can be used: issue it with extensions, \
         for example by `openssl x509 -req -extfile FILE` with the line basicConstraints=CA:FALSE in that file"
    )]
    Version {
        /// The place where it is.
        from: String,
        /// The version that it is of.
        version: u32,
    },
    /// A key that needs a passphrase.
    #[error(
        "the private key in {0} is encrypted, and there is nobody to ask for the passphrase: write it in plain with `openssl pkey`"
    )]
    Encrypted(String),
    /// A key that cannot be used.
    #[error(
        "the private key in {0} is of a kind that is not supported: use RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519"
    )]
    Kind(String),
    /// A key of another certificate.
    #[error(
        "the private key in {key} does not belong to the certificate in {certificate}: name the two that were made together"
    )]
    Mismatch {
        /// The place where the key is.
        key: String,
        /// The place where the certificate is.
        certificate: String,
    },
    /// Certificates to trust, none of which can sign another.
    #[error(
        "{from} holds no certificate of an authority, but one of {subject:?}: put that of its issuer there, {issuer:?}"
    )]
    Leaf {
        /// The place where it is.
        from: String,
        /// Whom it is for.
        subject: String,
        /// The name of who has issued it.
        issuer: String,
    },
    /// The time of a certificate is over.
    #[error("the certificate in {from} expired at {at}: renew it{}", after_that(*.is_followed))]
    Expired {
        /// The place where it is.
        from: String,
        /// The time when it ended.
        at: Timestamp,
        /// True if it is read again when it changes.
        is_followed: bool,
    },
    /// The time of a certificate has not begun.
    #[error(
        "the certificate in {from} is valid only from {at}, and here it is {now}: set the clock, or issue it anew{}",
        after_that(*.is_followed)
    )]
    NotYet {
        /// The place where it is.
        from: String,
        /// The time when it begins.
        at: Timestamp,
        /// The time that the clock says.
        now: Timestamp,
        /// True if it is read again when it changes.
        is_followed: bool,
    },
}

/// Says what else there is to do after a certificate was renewed.
fn after_that(is_followed: bool) -> &'static str {
    if is_followed { "" } else { " and restart Lictor" }
}

/// The longest time before its end at which something is said to end soon.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A credential that is renewed in time never comes to its last such part.
const LAST_PART: i32 = 5;

/// The time in which something may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The place where it is.
    pub from: String,
    /// The time when it begins.
    pub not_before: Timestamp,
    /// The time when it ends.
    pub not_after: Timestamp,
}

impl Validity {
    /// The time until its end; below zero after it.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> SignedDuration {
        self.not_after.duration_since(now)
    }

    /// Says whether it ends within a week. Of what is valid for a short time only, the last fifth counts, since that is
    /// renewed shortly before its end each time.
    #[must_use]
    pub fn ends_soon(&self, now: Timestamp) -> bool {
        let last_part = self.not_after.duration_since(self.not_before) / LAST_PART;
        self.remaining(now) < SOON.min(last_part)
    }
}

/// Holds what is shown to a server, and what its own certificate is held against.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    authorities: Option<Trusted>,
    identity: Option<Validity>,
    is_followed: bool,
}

/// The certificates of authorities.
#[derive(Clone, Debug)]
struct Trusted {
    from: String,
    /// The validity of the certificate that ends last: in a file with an old and a new one, the old one is not needed any more.
    validity: Option<Validity>,
}

impl Credentials {
    /// Those that all can be used at some time. A certificate whose time is over, or has not begun, is none of its
    /// faults here: the server decides, and [`fault_at`](Self::fault_at) tells.
    pub fn new(authorities: Option<&Source>, identity: Option<(&Source, &Source)>) -> Result<Self, Fault> {
        let authorities = authorities.map(can_trust).transpose()?;
        let identity = identity.map(|(certificate, key)| shown(certificate, key)).transpose()?.flatten();
        Ok(Self { authorities, identity, is_followed: false })
    }

    /// Notes that they are read again when they change: nobody has to restart Lictor for that.
    #[must_use]
    pub fn followed(self) -> Self {
        Self { is_followed: true, ..self }
    }

    /// The time in which the authorities can vouch for anybody, where there are any of ours.
    #[must_use]
    pub fn authorities(&self) -> Option<&Validity> {
        self.authorities.as_ref()?.validity.as_ref()
    }

    /// The time of the certificate that is shown, where there is one.
    #[must_use]
    pub fn identity(&self) -> Option<&Validity> {
        self.identity.as_ref()
    }

    /// Says what is wrong at this time with the certificate that is shown.
    #[must_use]
    pub fn fault_at(&self, now: Timestamp) -> Option<Fault> {
        let Validity { from, not_before, not_after } = self.identity.clone()?;
        let is_followed = self.is_followed;
        if now > not_after {
            Some(Fault::Expired { from, at: not_after, is_followed })
        } else if now < not_before {
            Some(Fault::NotYet { from, at: not_before, now, is_followed })
        } else {
            None
        }
    }

    /// Says why a connection failed, where that is a matter of certificates.
    #[must_use]
    pub fn explain(&self, error: &(dyn Error + 'static), now: Timestamp) -> Option<String> {
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(why)) => self.explain_server(why),
            Some(rustls::Error::AlertReceived(alert)) => self.explain_alert(*alert, now),
            Some(rustls::Error::InvalidMessage(_)) => Some(
                "the server does not speak TLS at this port: write http:// in place of https://, or correct the port"
                    .to_owned(),
            ),
            // A server may also just close a connection over a certificate.
            _ => self.fault_at(now).map(|fault| fault.to_string()),
        }
    }

    /// Says what is wrong with a server's certificate.
    fn explain_server(&self, why: &CertificateError) -> Option<String> {
        let moment = |time: &rustls::pki_types::UnixTime| {
            i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok())
        };
        match why {
            CertificateError::ExpiredContext { not_after, .. } => {
                Some(format!("the server's certificate expired at {}: renew it there", moment(not_after)?))
            }
            CertificateError::NotValidYetContext { time, not_before } => Some(format!(
                "the server's certificate is valid only from {}, and here it is {}: compare the two clocks",
                moment(not_before)?,
                moment(time)?
            )),
            // A bad signature is that of another authority with the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(match &self.authorities {
                Some(Trusted { from, .. }) => format!(
                    "no authority in {from} has issued the server's certificate: put the certificate of its issuer there"
                ),
                None => "no authority of the system has issued the server's certificate: name a file with the \
                         certificate of its issuer"
                    .to_owned(),
            }),
            // The library has no name of its own for it.
            CertificateError::Other(other) if other.to_string().contains("UnsupportedCertVersion") => Some(
                "the server's certificate is of X.509 version 1, and only version 3 can be used: issue it with \
                 extensions, subjectAltName among them"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Says what is wrong with the certificate that a server was shown.
    fn explain_alert(&self, alert: AlertDescription, now: Timestamp) -> Option<String> {
        if !matches!(
            alert,
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
        ) {
            return None;
        }
        let Some(shown) = &self.identity else {
            return Some(
                "the server asks for a client certificate, and none is given: name one and its key".to_owned(),
            );
        };
        let at_this_time = self.fault_at(now).map(|fault| fault.to_string());
        Some(at_this_time.unwrap_or_else(|| {
            format!(
                "the server does not accept the certificate in {}: use one from an authority that the server trusts, for \
                 clients (extendedKeyUsage=clientAuth)",
                shown.from
            )
        }))
    }
}

/// The TLS library's part in an error.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error holds is not its source, but what that one's source is.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = held.and_then(|held| tls_error(held)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Certificates of which at least one can have issued another.
fn can_trust(source: &Source) -> Result<Trusted, Fault> {
    let certificates = certificates(source, Wanted::Authorities)?;
    let damaged = |why: &dyn fmt::Display| damaged(source, Wanted::Authorities, why);
    let (mut leaf, mut is_one_there, mut last) = (None, false, None::<Validity>);
    let mut store = RootCertStore::empty();
    for der in &certificates {
        let parsed = store.add(der.clone()).map_err(|error| damaged(&error));
        let parsed = parsed.and_then(|()| X509Certificate::from_der(der).map_err(|error| damaged(&error)));
        let certificate = match parsed {
            Ok((_, certificate)) => certificate,
            // One that can be used is enough.
            Err(_) if is_one_there => continue,
            Err(fault) => return Err(fault),
        };
        // One that names itself as its issuer is trusted as it is, whatever it may sign; before version 3 nothing else
        // marks an authority.
        if certificate.is_ca() || certificate.subject() == certificate.issuer() {
            is_one_there = true;
            let validity = validity(source, &certificate);
            if validity.as_ref().map(|new| new.not_after) > last.as_ref().map(|last| last.not_after) {
                last = validity;
            }
            continue;
        }
        let (subject, issuer) = (certificate.subject().to_string(), certificate.issuer().to_string());
        leaf.get_or_insert(Fault::Leaf { from: source.from.clone(), subject, issuer });
    }
    match leaf {
        Some(leaf) if !is_one_there => Err(leaf),
        _ => Ok(Trusted { from: source.from.clone(), validity: last }),
    }
}

/// The time of a certificate; none where it is too far off to be told.
fn validity(source: &Source, certificate: &X509Certificate<'_>) -> Option<Validity> {
    let moment = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let validity = certificate.validity();
    let (not_before, not_after) = (moment(validity.not_before)?, moment(validity.not_after)?);
    Some(Validity { from: source.from.clone(), not_before, not_after })
}

/// A certificate and its key, as the TLS library will take them; none where the library does not say enough to judge.
fn shown(certificate: &Source, key: &Source) -> Result<Option<Validity>, Fault> {
    let chain = certificates(certificate, Wanted::Certificate)?;
    let private = private_key(key)?;
    let Some(first) = chain.first() else { return Ok(None) };
    let damaged = |why: &dyn fmt::Display| damaged(certificate, Wanted::Certificate, why);
    let (_, parsed) = X509Certificate::from_der(first).map_err(|error| damaged(&error))?;
    if parsed.version() != X509Version::V3 {
        return Err(Fault::Version { from: certificate.from.clone(), version: parsed.version().0 + 1 });
    }
    let loaded = ring::default_provider().key_provider.load_private_key(private);
    let loaded = loaded.map_err(|_| Fault::Kind(key.from.clone()))?;
    match CertifiedKey::new(chain.clone(), loaded).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(Fault::Mismatch { key: key.from.clone(), certificate: certificate.from.clone() });
        }
        Err(error) => return Err(damaged(&error)),
    }
    Ok(validity(certificate, &parsed))
}

fn certificates(source: &Source, wanted: Wanted) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found = CertificateDer::pem_slice_iter(&source.text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| damaged(source, wanted, &error))?;
    if found.is_empty() { Err(without(source, wanted)) } else { Ok(found) }
}

fn private_key(source: &Source) -> Result<PrivateKeyDer<'static>, Fault> {
    // RFC 1421, which `openssl rsa -aes256` still writes; and PKCS#8.
    let encrypted = ["Proc-Type: 4,ENCRYPTED", "-----BEGIN ENCRYPTED PRIVATE KEY-----"];
    let text = String::from_utf8_lossy(&source.text);
    if text.lines().any(|line| encrypted.contains(&line.trim())) {
        return Err(Fault::Encrypted(source.from.clone()));
    }
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&source.text) {
        let (kind, der) = section.map_err(|error| damaged(source, Wanted::Key, &error))?;
        match kind {
            SectionKind::PrivateKey => return Ok(PrivateKeyDer::Pkcs8(der.into())),
            SectionKind::RsaPrivateKey => return Ok(PrivateKeyDer::Pkcs1(der.into())),
            SectionKind::EcPrivateKey => return Ok(PrivateKeyDer::Sec1(der.into())),
            _ => {}
        }
    }
    Err(without(source, Wanted::Key))
}

fn damaged(source: &Source, wanted: Wanted, why: &dyn fmt::Display) -> Fault {
    Fault::Damaged { from: source.from.clone(), wanted, why: why.to_string() }
}

/// Says why a source does not have what is wanted.
fn without(source: &Source, wanted: Wanted) -> Fault {
    let from = source.from.clone();
    let text = String::from_utf8_lossy(&source.text);
    let labels: Vec<&str> = text.lines().filter_map(label).collect();
    if text.trim().is_empty() {
        Fault::Empty { from, wanted }
    } else if !labels.is_empty() {
        Fault::Other { from, wanted, found: labels.join(", ") }
    } else if source.text.starts_with(&[0x30]) {
        // An ASN.1 sequence, which certificates and keys both are.
        Fault::Der { from, wanted }
    } else {
        Fault::NotPem { from, wanted }
    }
}

/// The label of a line that begins a block.
fn label(line: &str) -> Option<&str> {
    let label = line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
    let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ';
    (label.len() <= 40 && label.chars().all(plain)).then_some(label)
}

#[cfg(test)]
mod tests;
