use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};

use super::*;

const VERSION_1: &str = include_str!("../../tests/support/version_1.crt");

fn source(from: &str, text: impl Into<Vec<u8>>) -> Source {
    Source { from: from.to_owned(), text: text.into() }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["consul.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    params
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    authority_named("an authority")
}

fn authority_named(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = key();
    (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
}

/// A certificate of an authority, that of a server or client, and its key.
fn pair() -> (String, String, String) {
    let (ca, issuer) = authority();
    let key = key();
    (ca, params("lictor").signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn at(moment: &str) -> Timestamp {
    moment.parse().unwrap()
}

#[test]
fn a_certificate_and_its_key() {
    let (ca, certificate, key) = pair();
    let other = self::key().serialize_pem();
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let key_of_ed25519 = ed25519.serialize_pem();
    let of_ed25519 = params("lictor").self_signed(&ed25519).unwrap().pem();
    let relabelled = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let with_headers = key.replacen("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1);
    let chain = format!("{certificate}{ca}");
    let cut = &certificate[..certificate.len() / 2];
    let bad_base64 = certificate.replace("MII", "M*I");
    let no_key = "-----BEGIN PRIVATE KEY-----\nMAMCAQA=\n-----END PRIVATE KEY-----\n";
    let request = params("lictor").serialize_request(&self::key()).unwrap().pem().unwrap();
    let table: &[(&[u8], &[u8], &str)] = &[
        (certificate.as_bytes(), key.as_bytes(), ""),
        (chain.as_bytes(), key.as_bytes(), ""),
        (of_ed25519.as_bytes(), key_of_ed25519.as_bytes(), ""),
        (
            VERSION_1.as_bytes(),
            key.as_bytes(),
            "the certificate in C is of X.509 version 1, and only version 3 can be used",
        ),
        (certificate.as_bytes(), relabelled.as_bytes(), "the private key in K is encrypted"),
        (certificate.as_bytes(), with_headers.as_bytes(), "the private key in K is encrypted"),
        (
            certificate.as_bytes(),
            other.as_bytes(),
            "the private key in K does not belong to the certificate in C: name the two that were made together",
        ),
        (certificate.as_bytes(), no_key.as_bytes(), "the private key in K is of a kind that is not supported: use RSA"),
        (b"", key.as_bytes(), "C is empty: it must hold a certificate in PEM form"),
        (b" \n", key.as_bytes(), "C is empty"),
        (certificate.as_bytes(), b"", "K is empty: it must hold a private key in PEM form"),
        (b"hello", key.as_bytes(), "C is not in PEM form: it must hold a certificate"),
        (certificate.as_bytes(), b"hello", "K is not in PEM form: it must hold a private key"),
        (&der(&certificate), key.as_bytes(), "C is in DER form: a certificate must be in PEM form"),
        (key.as_bytes(), certificate.as_bytes(), "C holds PRIVATE KEY and not a certificate: name the file that does"),
        (certificate.as_bytes(), certificate.as_bytes(), "K holds CERTIFICATE and not a private key"),
        (request.as_bytes(), key.as_bytes(), "C holds CERTIFICATE REQUEST and not a certificate"),
        (cut.as_bytes(), key.as_bytes(), "C is damaged ("),
        (bad_base64.as_bytes(), key.as_bytes(), "C is damaged ("),
        (b"-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n", key.as_bytes(), "C is damaged ("),
    ];
    for (certificate, private, expected) in table {
        let (certificate, private) = (source("C", *certificate), source("K", *private));
        let found = Credentials::new(None, Some((&certificate, &private))).err().map(|fault| fault.to_string());
        let found = found.unwrap_or_default();
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{expected:?}: {found}");
        assert!(!found.contains(key.lines().nth(1).unwrap()), "a key is shown: {found}");
    }
}

#[test]
fn what_is_to_be_trusted() {
    let (ca, leaf, key) = pair();
    let of_itself = params("a server").self_signed(&self::key()).unwrap().pem();
    let both = format!("{leaf}{ca}");
    let many = format!("{leaf}{VERSION_1}");
    let table: &[(&[u8], &str)] = &[
        (ca.as_bytes(), ""),
        (both.as_bytes(), ""),
        (of_itself.as_bytes(), ""),
        (
            leaf.as_bytes(),
            "A holds no certificate of an authority, but one of \"CN=lictor\": put that of its issuer there, \"CN=an authority\"",
        ),
        (many.as_bytes(), "A holds no certificate of an authority, but one of \"CN=lictor\""),
        (VERSION_1.as_bytes(), "A holds no certificate of an authority, but one of \"CN=lictor\""),
        (b"", "A is empty: it must hold the certificates of authorities in PEM form"),
        (b"hello", "A is not in PEM form"),
        (&der(&ca), "A is in DER form"),
        (key.as_bytes(), "A holds PRIVATE KEY and not the certificates of authorities"),
        (b"-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n", "A is damaged ("),
    ];
    for (text, expected) in table {
        let found = Credentials::new(Some(&source("A", *text)), None).err().map(|fault| fault.to_string());
        let found = found.unwrap_or_default();
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{expected:?}: {found}");
    }
}

#[test]
fn the_time_of_a_certificate() {
    let (_, certificate, key) = pair();
    let credentials = Credentials::new(None, Some((&source("C", certificate), &source("K", key)))).unwrap();
    let says = |moment| credentials.fault_at(at(moment)).map(|fault| fault.to_string()).unwrap_or_default();
    assert_eq!(says("2026-01-01T00:00:00Z"), "");
    assert_eq!(
        says("2031-01-01T00:00:00Z"),
        "the certificate in C expired at 2030-01-01T00:00:00Z: renew it and restart Lictor"
    );
    assert_eq!(
        says("2019-12-31T23:59:59Z"),
        "the certificate in C is valid only from 2020-01-01T00:00:00Z, and here it is 2019-12-31T23:59:59Z: set the clock, \
         or issue it anew and restart Lictor"
    );
    assert_eq!(Credentials::default().fault_at(at("2026-01-01T00:00:00Z")), None);
    // Whoever reads it again needs no restart.
    let fault = credentials.followed().fault_at(at("2031-01-01T00:00:00Z")).unwrap().to_string();
    assert_eq!(fault, "the certificate in C expired at 2030-01-01T00:00:00Z: renew it");
}

#[test]
fn what_ends_soon() {
    // The days that it is valid, the hours until its end, and whether that is soon.
    let table =
        [(3650, 8 * 24, false), (3650, 6 * 24, true), (3650, -1, true), (90, 8 * 24, false), (90, 6 * 24, true)];
    let short_lived = [(3, 24, false), (3, 14, true), (1, 5, false), (1, 4, true)];
    let now = at("2026-01-01T00:00:00Z");
    for (days, hours, soon) in table.into_iter().chain(short_lived) {
        let not_after = now + SignedDuration::from_hours(hours);
        let not_before = not_after - SignedDuration::from_hours(24 * days);
        let validity = Validity { from: "C".to_owned(), not_before, not_after };
        assert_eq!(validity.ends_soon(now), soon, "{days} days, {hours} hours before the end");
        assert_eq!(validity.remaining(now), SignedDuration::from_hours(hours));
    }
}

/// A file may hold the next authority beside the present one, which ends first.
#[test]
fn of_several_authorities_the_last_end_counts() {
    let until = |year: i32| {
        let mut params = params("an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&key()).unwrap().pem()
    };
    for (texts, end) in [([2031, 2035], "2035-01-01T00:00:00Z"), ([2036, 2032], "2036-01-01T00:00:00Z")] {
        let both = texts.map(until).concat();
        let credentials = Credentials::new(Some(&source("A", both)), None).unwrap();
        assert_eq!(credentials.authorities().unwrap().not_after, at(end));
    }
    assert_eq!(Credentials::default().authorities(), None);
}

/// Gives the text that is said where a server with this certificate is asked by who trusts that authority.
fn handshake(authority: &str, server: &str, moment: &str) -> String {
    let mut store = RootCertStore::empty();
    store.add(der(authority).into()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let now =
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(at(moment).as_second()).unwrap()));
    let name = ServerName::try_from("consul.example").unwrap();
    let error = verifier.verify_server_cert(&der(server).into(), &[], &name, &[], now).err().unwrap();
    let credentials = Credentials::new(Some(&source("A", authority)), None).unwrap();
    // As a connection tells it.
    credentials.explain(&io::Error::other(error), at(moment)).unwrap_or_default()
}

#[test]
fn a_server_that_is_not_trusted() {
    let (ca, server, _) = pair();
    let now = "2026-01-01T00:00:00Z";
    assert_eq!(
        handshake(&ca, &server, "2031-01-01T00:00:00Z"),
        "the server's certificate expired at 2030-01-01T00:00:00Z: renew it there"
    );
    assert_eq!(
        handshake(&ca, &server, "2019-01-01T00:00:00Z"),
        "the server's certificate is valid only from 2020-01-01T00:00:00Z, and here it is 2019-01-01T00:00:00Z: compare the \
         two clocks"
    );
    for stranger in [authority_named("an authority").0, authority_named("another authority").0] {
        assert_eq!(
            handshake(&stranger, &server, now),
            "no authority in A has issued the server's certificate: put the certificate of its issuer there"
        );
    }
    assert!(handshake(&ca, VERSION_1, now).starts_with("the server's certificate is of X.509 version 1"));
}

#[test]
fn a_server_that_does_not_accept_the_certificate() {
    let (_, certificate, key) = pair();
    let with = Credentials::new(None, Some((&source("C", certificate), &source("K", key)))).unwrap();
    let (now, later) = (at("2026-01-01T00:00:00Z"), at("2031-01-01T00:00:00Z"));
    let alert = |alert| io::Error::other(rustls::Error::AlertReceived(alert));
    let says = |credentials: &Credentials, error: &io::Error, now| credentials.explain(error, now).unwrap_or_default();
    let without = Credentials::default();
    let bad = alert(AlertDescription::BadCertificate);
    assert!(says(&with, &bad, now).starts_with("the server does not accept the certificate in C: use one from"));
    assert!(says(&with, &bad, later).starts_with("the certificate in C expired at 2030-01-01T00:00:00Z: renew it"));
    assert!(
        says(&without, &alert(AlertDescription::CertificateRequired), now).starts_with("the server asks for a client")
    );
    assert_eq!(says(&with, &alert(AlertDescription::InternalError), later), "");
    // A server may also close the connection without a word.
    let closed = io::Error::from(io::ErrorKind::ConnectionReset);
    assert_eq!(says(&with, &closed, now), "");
    assert!(says(&with, &closed, later).starts_with("the certificate in C expired at"));
    assert_eq!(says(&without, &closed, later), "");
}
