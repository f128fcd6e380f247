/* The layout that the kernel program and its loader share. `src/wire.rs` is its twin: change both.
 *
 * Addresses are in network byte order, ports in host byte order.
 */
#ifndef PALISADE_GUARD_H
#define PALISADE_GUARD_H

/* Every socket of a service carries it, so that the host firewall can tell services from other users of the host. */
#define SOCKET_MARK 0x50414c49
/* The same for a TCP socket that was bound, and thus for the connections that it accepts: `getpeername` must know
 * them from those that were made by connecting.
 */
#define SOCKET_MARK_BOUND 0x50414c4b

/* What a rule is about: first byte of its key. The comment says which other fields of the key count. */
enum rule_kind {
	RULE_SERVICE = 1,   /* server */
	RULE_PEER = 2,      /* client, server, proto, port; proto and port 0: any */
	RULE_BIND = 3,      /* server, proto, port as the service knows it */
	RULE_BACKEND = 4,   /* server, port: NEAR_BACKENDS … count-1; the first ones stand in RULE_SERVICE */
	RULE_LOCALHOST = 5, /* client, proto, port */
	RULE_HOST_PORT = 6, /* client, port */
	RULE_EGRESS = 7,    /* client, port: 0 … count-1 */
	RULE_PUBLISHED = 8, /* proto, port as the host knows it */
	RULE_RESOLVER = 9,  /* client, or 0 for everybody whose egress is open; port: 0 … RESOLVERS_MAX-1 */
	RULE_PLACE = 10,    /* proto, port as the host knows it; server: 0 … PLACES_MAX-1. TCP only */
};

struct rule_key {
	__u8 kind;
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	__u16 port;
	__u32 client;
	__u32 server;
};

enum rule_flag {
	/* RULE_SERVICE */
	SERVICE_STRICT = 1 << 0,
	SERVICE_HOST_MODE = 1 << 1,
	SERVICE_NARROWED = 1 << 2, /* only RULE_PEER entries; otherwise whoever shares a network, too */
	SERVICE_EGRESS_ALL = 1 << 3,
	SERVICE_LEARN = 1 << 4,
	SERVICE_PUBLISHES = 1 << 5, /* some port of it has another number on the host */
	/* RULE_BIND */
	BIND_PUBLISHED = 1 << 0,
	/* RULE_LOCALHOST */
	LOCALHOST_AMBIGUOUS = 1 << 0,
};

struct rule {
	__u64 networks; /* SERVICE: one bit for each network it is in */
	__u32 addr[4];  /* SERVICE: its first backends; BACKEND, LOCALHOST, PUBLISHED: [0] is the IPv4 address; BIND, PLACE: host address; EGRESS, RESOLVER: IPv6 or mapped */
	__u32 count;    /* SERVICE: backends; PLACE: address of the service */
	__u16 flags;
	__u16 port;     /* BIND: on the host; PUBLISHED, PLACE: as the service knows it; EGRESS: 0 is any; SERVICE: number of egress rules */
	__u8 proto;     /* EGRESS: 0 is any */
	__u8 prefix;    /* EGRESS: bits of addr that count, 0 to 128; BIND, PLACE: 4 or 6 when it is for one address only, or for all of one family */
	__u8 pad[6];
};

/* Few services have more, and each look-up in a large policy waits for memory. */
#define NEAR_BACKENDS 4
#define EGRESS_RULES_MAX 32
#define RESOLVERS_MAX 3
/* One port of the host may be published on so many addresses. */
#define PLACES_MAX 16
/* What the last byte of an address can tell apart. */
#define INSTANCES_MAX 254

/* A listening TCP socket, bound to its instance's own address. The sockets of a SO_REUSEPORT group have a slot each, so
 * that one is still found when others are closed. When there are more, the first ones and the latest are kept: whoever
 * replaces the old ones by new ones closes either these or those.
 */
struct listener_key {
	__u32 instance;
	__u16 port; /* as the service knows it */
	__u8 ipv6;  /* 1: it takes IPv6 only */
	__u8 slot;
};

#define LISTENER_SLOTS 4
#define LISTENER_SLOTS_OF_FIRST 2

/* Instances of one service that get no new connections while others can take them: bit n is instance n. */
struct suspension {
	__u64 bits[4];
};

enum event_kind {
	EVENT_REFUSED = 1,
	EVENT_USED = 2, /* learn: it happened, once for each */
};

enum event_hook {
	HOOK_BIND = 1,
	HOOK_CONNECT = 2,
	HOOK_SEND = 3,
	HOOK_SOCKET = 4,
	HOOK_RECEIVE = 5,
	HOOK_UNIX = 6,
};

enum reason {
	REASON_NONE = 0,
	REASON_NOT_A_PEER = 1,
	REASON_UNDECLARED_PORT = 2,   /* strict */
	REASON_HOST_LOOPBACK = 3,
	REASON_HOST_PORT = 4,
	REASON_UNKNOWN_PRIVATE = 5,   /* another stack, or nobody */
	REASON_METADATA = 6,
	REASON_EGRESS = 7,
	REASON_AMBIGUOUS_LOCALHOST = 8,
	REASON_NO_BACKEND = 9,
	REASON_FOREIGN_ADDRESS = 10,  /* an address that isn't the service's to use as its own */
	REASON_SOCKET_TYPE = 11,
	REASON_ABSTRACT_UNIX = 12,
	REASON_UNDECLARED_LISTENER = 13,
	REASON_NO_POLICY = 14,
	REASON_IPV6_LOCAL_DATAGRAM = 15, /* the kernel can't turn a datagram to ::1 into an IPv4 one */
	REASON_FROM_OUTSIDE = 16,     /* a packet for a private address that came in by an interface */
};

struct event {
	__u64 time_ns;    /* CLOCK_BOOTTIME */
	__u32 instance;   /* address of the instance */
	__u32 pid;
	__u32 uid;
	__u32 suppressed; /* like ones before it that were not reported */
	__u8 addr[16];    /* IPv6, or IPv4 mapped */
	__u16 port;
	__u8 proto;
	__u8 kind;
	__u8 hook;
	__u8 reason;
	__u8 family;      /* HOOK_SOCKET: of the socket */
	__u8 type;        /* HOOK_SOCKET: of the socket */
	char comm[16];
};

#endif
