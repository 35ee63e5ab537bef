//! Core: a mesh CA, its leaves, and a TLS client to try them with.

use std::fmt::Display;
use std::net::SocketAddr;
use std::pin::Pin;

use enclaveid_envoy::Svid;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder, X509NameRef};
use runtime::clock::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::PATIENCE;

/// A certificate authority of one trust domain.
pub(crate) struct MeshCa {
    key: PKey<Private>,
    pub(crate) certificate: X509,
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) key: PKey<Private>,
    pub(crate) certificate: X509,
}

/// What a client shows and offers.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) leaf: Option<Leaf>,
    pub(crate) version_max: SslVersion,
}

/// What came back over mutual TLS.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Serial number of the server's certificate.
    pub(crate) serial: u32,
    /// All that the server wrote, as text.
    pub(crate) text: String,
}

impl MeshCa {
    pub(crate) fn new(common_name: &str) -> Self {
        let key = p256();
        let subject = name(common_name);
        let mut builder = draft(&subject, &subject, &key, 1);
        builder
            .append_extension(BasicConstraints::new().critical().ca().build().unwrap())
            .unwrap();
        let usage = KeyUsage::new()
            .critical()
            .key_cert_sign()
            .crl_sign()
            .build()
            .unwrap();
        builder.append_extension(usage).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Self {
            key,
            certificate: builder.build(),
        }
    }

    /// A leaf as the X509-SVID document, section 4, wants it.
    pub(crate) fn leaf(&self, spiffe_id: &str, serial: u32) -> Leaf {
        let key = p256();
        let mut builder = draft(&name("leaf"), self.certificate.subject_name(), &key, serial);
        builder
            .append_extension(BasicConstraints::new().critical().build().unwrap())
            .unwrap();
        let usage = KeyUsage::new()
            .critical()
            .digital_signature()
            .build()
            .unwrap();
        builder.append_extension(usage).unwrap();
        let usage = ExtendedKeyUsage::new()
            .server_auth()
            .client_auth()
            .build()
            .unwrap();
        builder.append_extension(usage).unwrap();
        let context = builder.x509v3_context(Some(&self.certificate), None);
        let id = SubjectAlternativeName::new()
            .uri(spiffe_id)
            .build(&context)
            .unwrap();
        builder.append_extension(id).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        Leaf {
            key,
            certificate: builder.build(),
        }
    }

    /// A leaf with this CA as its trust bundle.
    pub(crate) fn svid(&self, spiffe_id: &str, serial: u32) -> Svid {
        let leaf = self.leaf(spiffe_id, serial);
        Svid {
            spiffe_id: spiffe_id.to_owned(),
            certificate_chain_pem: leaf.certificate.to_pem().unwrap(),
            private_key_pem: leaf.key.private_key_to_pem_pkcs8().unwrap().into(),
            trust_bundle_pem: self.certificate.to_pem().unwrap(),
            serial_hex: format!("{serial:x}"),
            not_before: UnixTime(0),
            not_after: UnixTime(0),
        }
    }
}

impl Client {
    pub(crate) fn with(leaf: Leaf) -> Self {
        Self {
            leaf: Some(leaf),
            version_max: SslVersion::TLS1_3,
        }
    }

    /// One request on a connection of its own; an error is what TLS or the socket said.
    pub(crate) async fn call(&self, server: SocketAddr, ca: &MeshCa) -> Result<Answer, String> {
        let mut stream = self.connect(server, ca).await?;
        let certificate = stream.ssl().peer_certificate().unwrap();
        let serial = certificate.serial_number().to_bn().unwrap();
        let serial = u32::from_str_radix(&serial.to_hex_str().unwrap(), 16).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.map_err(text)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(text)?;
        let text = String::from_utf8(answer).unwrap();
        Ok(Answer { serial, text })
    }

    /// What a server says that does not let this client in.
    pub(crate) async fn refusal(&self, server: SocketAddr, ca: &MeshCa) -> String {
        let mut stream = match self.connect(server, ca).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        // In TLS 1.3 a client learns only now whether its certificate was taken. It says nothing
        // before: the refusal would be lost when the server closes with something unread.
        let heard = tokio::time::timeout(PATIENCE, stream.read_u8());
        heard.await.unwrap().unwrap_err().to_string()
    }

    async fn connect(
        &self,
        server: SocketAddr,
        ca: &MeshCa,
    ) -> Result<SslStream<TcpStream>, String> {
        let stream = TcpStream::connect(server).await.map_err(text)?;
        // Else the request waits for the acknowledgement of the handshake's last flight: 40 ms.
        stream.set_nodelay(true).unwrap();
        let mut stream = SslStream::new(self.ssl(ca), stream).map_err(text)?;
        Pin::new(&mut stream).connect().await.map_err(text)?;
        Ok(stream)
    }

    fn ssl(&self, ca: &MeshCa) -> openssl::ssl::Ssl {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector
            .set_max_proto_version(Some(self.version_max))
            .unwrap();
        connector
            .cert_store_mut()
            .add_cert(ca.certificate.clone())
            .unwrap();
        connector.set_verify(SslVerifyMode::PEER);
        if let Some(leaf) = &self.leaf {
            connector.set_certificate(&leaf.certificate).unwrap();
            connector.set_private_key(&leaf.key).unwrap();
        }
        let mut config = connector.build().configure().unwrap();
        config.set_verify_hostname(false);
        config.set_use_server_name_indication(false);
        config.into_ssl("pod").unwrap()
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn name(common_name: &str) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, common_name)
        .unwrap();
    name.build()
}

fn draft(
    subject: &X509NameRef,
    issuer: &X509NameRef,
    key: &PKey<Private>,
    serial: u32,
) -> X509Builder {
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let serial = BigNum::from_u32(serial).unwrap().to_asn1_integer().unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(subject).unwrap();
    builder.set_issuer_name(issuer).unwrap();
    builder.set_pubkey(key).unwrap();
    builder
        .set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    builder
        .set_not_after(&Asn1Time::days_from_now(1).unwrap())
        .unwrap();
    builder
}

fn p256() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}
