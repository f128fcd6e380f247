//! The documentation page of risks, made of the table.

use std::fmt::Write as _;

use super::TABLE;

/// `docs/risks.md`.
pub fn document() -> String {
    let mut page = INTRODUCTION.to_owned();
    for risk in TABLE {
        let first = |text: &str| {
            let mut chars = text.chars();
            chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect::<String>())
        };
        let _ =
            write!(page, "\n## `{}`\n\n{}: {}.\n\n{}.\n", risk.id, first(risk.title), risk.why, first(risk.instead));
        if risk.breaks_guard {
            page.push_str(GUARD);
        }
    }
    page
}

const GUARD: &str =
    "\nWhere this lets the service out of its guard, `palisade up` refuses it until it is accepted with a reason.\n";

const INTRODUCTION: &str = "\
# Risks

<!-- Made from the table in crates/palisade-core/src/compose/risk/table.rs; a test fails when it is out of date. -->

A risk is something that works as written, and makes a bad day likelier or worse. `palisade check` shows each with its
place, why it matters and what to do. Risks don't change the exit code unless `--strict` is given.

## Accepting a risk

`x-palisade.allow`, of a service or of the whole file, accepts a risk and says why:

```yaml
services:
  postgres:
    x-palisade:
      allow:
        - id: stateful-without-backup
          reason: pg_dump every night to the other machine, see ops/backup.md
        - {id: latest-tag, reason: it is built on this machine}
x-palisade:
  allow: {no-memory-limit: the machine runs nothing else}
```

A bare `allow: [latest-tag]` works as well, with a note that nobody knows why. An id that doesn't exist is a mistake, and
an entry that silences nothing is told.

## For programs

`palisade check --format json` prints one object:

| field | holds |
| --- | --- |
| `version` | 1 |
| `valid` | `false` when there are mistakes |
| `project`, `services` | names, when it is valid |
| `diagnostics` | everything that is said, in the order of the files: `severity` (`error`, `risk`, `warning`, `note`), `id`, `message`, `why` (of risks), `place` (`file`, `line`, `column`, or null), `also` (more places, each with `place` and `text`), `hints` |
| `accepted` | risks that are accepted: `id`, `service` (null: the file), `reason`, `place` |
| `findings` | what stands in the way of `up`, though the file is right; `needs-engine` among them does not make it invalid |
| `counts` | how many `errors`, `risks`, `warnings`, `notes` and `accepted` there are |
";
