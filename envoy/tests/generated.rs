//! Core: the checked-in messages are those of the checked-in definition.
//!
//! No build needs a protobuf compiler: this test generates the code anew and compares. With
//! `ENCLAVEID_BLESS` set it writes the file instead.

use std::path::Path;

const PROTO: &str = "proto/sds.proto";
const GENERATED: &str = "src/sds/pb.rs";
const HEADER: &str =
    "//! Edge: messages of the secret discovery API, generated from proto/sds.proto.";
/// Messages that hold key bytes, or the bytes of such a message.
const SECRET: [&str; 6] = [
    "Any",
    "CertificateValidationContext",
    "DataSource",
    "DiscoveryResponse",
    "Secret",
    "TlsCertificate",
];

#[test]
fn generated_messages_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile([root.join(PROTO)], [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut config = prost_build::Config::new();
    config.out_dir(out.path()).bytes(["."]);
    config.skip_debug(SECRET.map(|name| format!(".envoy.service.secret.v3.{name}")));
    config.compile_fds(files).unwrap();
    let code = std::fs::read_to_string(out.path().join("envoy.service.secret.v3.rs")).unwrap();
    let code = format!("{HEADER}\n\n{code}");

    let path = root.join(GENERATED);
    if std::env::var_os("ENCLAVEID_BLESS").is_some() {
        std::fs::write(&path, &code).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == code,
        "{GENERATED} is stale: run this test with ENCLAVEID_BLESS=1"
    );
}
