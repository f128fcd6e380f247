//! A value with variables, and a `.env`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::{Files, load};

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (value, literal, dot_env) = input;
    let quoted = |text: &str| serde_json::to_string(text).expect("a text can be written down");
    // What has no dollar sign, or two of each, is taken as it is. JSON leaves out what YAML has besides `\n`.
    let literal: String =
        literal.chars().filter(|char| !char.is_control() && !"\u{2028}\u{2029}\u{feff}".contains(*char)).collect();
    let text = format!(
        "services:\n  a:\n    x-palisade: {{process: {{command: [a]}}}}\n    environment:\n      LITERAL: {}\n",
        quoted(&literal.replace('$', "$$")),
    );
    let files = |text: String, dot_env: &[u8]| {
        Files(vec![("compose.yaml".to_owned(), text.into_bytes()), (".env".to_owned(), dot_env.to_vec())])
    };
    match load(&files(text.clone(), b"")) {
        Ok(loaded) => {
            let settled = loaded.stack.services[0].environment.iter().find(|(name, _)| *name == "LITERAL");
            assert_eq!(settled.map(|(_, value)| value.to_string()), Some(literal));
        }
        Err(rejected) => panic!("a text without variables is refused: {:?}", rejected.diagnostics),
    }
    let _ = load(&files(format!("{text}      VALUE: {}\n", quoted(value)), dot_env));
});
