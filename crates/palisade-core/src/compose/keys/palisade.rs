//! `x-palisade`, of the file and of services: what Compose has no word for.

use super::*;

/// `services.*.x-palisade`.
pub static SERVICE_PALISADE: Section = section(
    "services.*.x-palisade",
    "`x-palisade` of a service",
    &[
        yes("process", Shape::Section(&PROCESS), "how to run it without a container engine"),
        yes("connect", SET, "only these peers, and ports of theirs, may be connected to"),
        yes("strict", BOOL, "a bind to an undeclared port is refused"),
        yes("egress", Shape::Whole, "what it may reach outside: `none`, `all`, or a list of addresses"),
        yes("host", SET, "ports of the host's own loopback services that it may use"),
        yes("allow", Shape::Any, "risks that are accepted for this service, each with a reason"),
        yes(
            "runtime",
            TEXT,
            "`engine`: its image, by a container engine; `process`; `auto`: `process` where it is given",
        ),
    ],
);

/// `x-palisade.process`.
pub static PROCESS: Section = section(
    "services.*.x-palisade.process",
    "`x-palisade.process`",
    &[
        yes(
            "command",
            Shape::Command,
            "the argument vector, a program that begins with `./` being below the project directory; a string is for `/bin/sh -c`",
        ),
        yes("user", TEXT, "`user` or `user:group`"),
        yes("working_dir", TEXT, "where it starts"),
    ],
);

/// `x-palisade` of the file.
pub static TOP_PALISADE: Section = section(
    "x-palisade",
    "`x-palisade` of the file",
    &[
        yes("firewall", Shape::Section(&FIREWALL), "what else the host's firewall lets in"),
        yes("allow", Shape::Any, "risks that are accepted in the whole file, each with a reason"),
        yes("edge", Shape::Short(Short::Edge, &EDGE), "what the TLS edge serves; a list stands for its `routes`"),
    ],
);

/// `x-palisade.firewall`.
pub static FIREWALL: Section = section(
    "x-palisade.firewall",
    "`x-palisade.firewall`",
    &[
        yes("allow", SET, "ports besides SSH and the published ones that stay open"),
        yes(
            "backend",
            TEXT,
            "whose firewall decides: `auto` (what the host runs), `nftables` (a table of Palisade's own), `firewalld`, `iptables`; `none` leaves it alone",
        ),
        yes(
            "confirm",
            TEXT,
            "how long a change that could lock you out waits for `palisade confirm` over a new connection (`60s`); `none`: it doesn't",
        ),
    ],
);

/// One of `x-palisade.allow`.
pub static ALLOW: Section = section(
    "x-palisade.allow[]",
    "one of `allow`",
    &[yes("id", TEXT, "the risk's name, as `palisade check` shows it"), yes("reason", TEXT, "why it is accepted")],
);
