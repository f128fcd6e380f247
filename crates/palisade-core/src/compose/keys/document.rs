//! The documentation page of the table: `docs/compose-keys.md`.

use std::fmt::Write as _;

use super::{Class, TABLE};

/// `docs/compose-keys.md`.
pub fn document() -> String {
    let mut page = String::from(
        "# Every key of a Compose file\n\n\
         <!-- Made from the table in crates/palisade-core/src/compose/keys; a test fails when it is out of date. -->\n\n\
         Each key of the Compose Specification is one of these. Nothing is ignored in silence.\n\n\
         | | |\n|---|---|\n\
         | **honoured** | Palisade does what it says |\n\
         | **image** | what an image runs with; no effect beside `x-palisade.process`, which takes the image's place |\n\
         | **no effect** | accepted, with a note: nothing needs to be done here |\n\
         | **refused** | an error, with what to do instead |\n\n\
         Keys that begin with `x-` are left to whoever reads them. Single values of an honoured key can be refused as well; the\n\
         message says which are possible.\n",
    );
    for section in TABLE {
        let title = if section.path.is_empty() { "the top level" } else { section.path };
        // A path holds `*`, which is emphasis outside of code.
        let _ = writeln!(page, "\n## `{title}`\n\n| key | | |\n|---|---|---|");
        for key in section.keys {
            let (class, text) = match key.class {
                Class::Honoured(does) => ("honoured", does.to_owned()),
                Class::Image(does) => ("image", does.to_owned()),
                Class::NoEffect(why) => ("no effect", why.to_owned()),
                Class::Refused { why, instead } => ("**refused**", format!("{why}. Instead: {instead}")),
            };
            let _ = writeln!(page, "| `{}` | {class} | {} |", key.name, text.replace('|', "\\|"));
        }
    }
    page
}
