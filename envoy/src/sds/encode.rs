//! Edge: an identity as the messages that Envoy takes.

use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

use super::pb;
use crate::secret::{EncodedSecret, SecretName};
use crate::svid::Svid;

/// Certificate chain and private key.
pub(crate) fn identity(svid: &Svid) -> EncodedSecret {
    let certificate = pb::TlsCertificate {
        certificate_chain: Some(inline(svid.certificate_chain_pem.clone().into())),
        // A copy that wipes itself, as the original does.
        private_key: Some(inline(Bytes::from_owner(svid.private_key_pem.clone()))),
    };
    encode(
        SecretName::Identity,
        pb::secret::Type::TlsCertificate(certificate),
    )
}

/// CA certificates. Nothing but them: see the message's comment.
pub(crate) fn trust_bundle(svid: &Svid) -> EncodedSecret {
    let context = pb::CertificateValidationContext {
        trusted_ca: Some(inline(svid.trust_bundle_pem.clone().into())),
    };
    encode(
        SecretName::TrustBundle,
        pb::secret::Type::ValidationContext(context),
    )
}

fn inline(bytes: Bytes) -> pb::DataSource {
    pb::DataSource {
        specifier: Some(pb::data_source::Specifier::InlineBytes(bytes)),
    }
}

fn encode(name: SecretName, content: pb::secret::Type) -> EncodedSecret {
    let secret = pb::Secret {
        name: name.as_str().to_owned(),
        r#type: Some(content),
    };
    // Of the right size at once: a vector that grows leaves copies behind that nobody wipes.
    let mut message = Zeroizing::new(Vec::with_capacity(secret.encoded_len()));
    secret.encode_raw(&mut *message);
    EncodedSecret::new(Bytes::from_owner(message))
}

#[cfg(test)]
mod tests {
    use runtime::clock::UnixTime;

    use super::*;

    fn svid() -> Svid {
        Svid {
            spiffe_id: "spiffe://td/pod".to_owned(),
            certificate_chain_pem: b"CHAIN".to_vec(),
            private_key_pem: Zeroizing::new(b"KEY".to_vec()),
            trust_bundle_pem: b"CA".to_vec(),
            serial_hex: "01".to_owned(),
            not_before: UnixTime(0),
            not_after: UnixTime(0),
        }
    }

    #[test]
    fn bytes_are_those_of_envoys_messages() {
        // name=1; tls_certificate=2 {certificate_chain=1 {inline_bytes=2}, private_key=2 {..}}.
        let want = b"\x0a\x07default\x12\x10\x0a\x07\x12\x05CHAIN\x12\x05\x12\x03KEY";
        assert_eq!(identity(&svid()).message.as_ref(), want);
        // name=1; validation_context=4 {trusted_ca=1 {inline_bytes=2}}.
        let want = b"\x0a\x06ROOTCA\x22\x06\x0a\x04\x12\x02CA";
        assert_eq!(trust_bundle(&svid()).message.as_ref(), want);
    }
}
