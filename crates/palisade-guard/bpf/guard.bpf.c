// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* The guard: programs attached to the cgroup of each instance that decide about, and rewrite, every address its
 * sockets bind, connect or send to. Those that run for each packet are in packets.h.
 *
 * Who somebody is comes from the storage of the cgroup that the program is attached to (Linux 5.9: keyed by cgroup
 * id alone, one value for all hooks), thus from the cgroup that made the socket, not from who calls. A cgroup whose
 * storage is still zero is refused everything.
 *
 * Published TCP ports have two programs of their own, in `enter.h`.
 *
 * Never bypass `decide` and `decide_bind`: every hook goes through one of the two.
 */
#include "bind.h"
#include "connect.h"
#include "enter.h"
#include "packets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* ---- connect and send ---- */

static __always_inline void set_mark(struct bpf_sock_addr *ctx, __u32 mark)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk && sk->mark != mark)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static __always_inline void remember_origin(struct bpf_sock_addr *ctx, const struct call *c)
{
	struct bpf_sock *sk = ctx->sk;
	struct origin *origin;

	if (!sk)
		return;
	origin = bpf_sk_storage_get(&origins, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (origin) {
		copy_address(origin->addr, c->dst);
		origin->port = c->port;
	}
}

/* A socket may connect again, after which the earlier origin is wrong. */
static __always_inline void forget_origin(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk)
		bpf_sk_storage_delete(&origins, sk);
}

/* A TCP connection to a service's address, on the port that was asked for: what `implied_origin` makes of the
 * peer's address without having been told. The source is then set here, so a socket that was bound is none of these.
 */
static __always_inline bool is_implied(const struct call *c, const struct bpf_sock *sk)
{
	return c->proto == IPPROTO_TCP && sk->src_port == 0 && is_mapped(c->dst) && in_private(c->to) &&
	       c->dst[3] == service_of(c->to) && c->to_port == c->port;
}

static __always_inline bool implied_origin(const struct bpf_sock *sk, __u32 *peer)
{
	if (sk->protocol != IPPROTO_TCP || sk->mark != SOCKET_MARK || !in_private(*peer))
		return false;
	*peer = service_of(*peer);
	return true;
}

/* So that an answer from `addr` is let in and looks as if it came from where the program sent to. */
static __always_inline void remember_flow(struct bpf_sock_addr *ctx, const __u32 *addr, __u16 port, const __u32 *seen,
					  __u16 seen_port)
{
	struct flow_key key = { .cookie = bpf_get_socket_cookie(ctx), .port = port };
	struct origin value = { .port = seen_port };

	copy_address(key.addr, addr);
	copy_address(value.addr, seen);
	bpf_map_update_elem(&flows, &key, &value, BPF_ANY);
}

/* So that an answer from outside is let in. */
static __always_inline void remember_outside(struct bpf_sock_addr *ctx, const struct call *c)
{
	struct flow_key key = { .cookie = bpf_get_socket_cookie(ctx), .port = c->port };
	struct origin value = { .port = c->port, .outside = 1 };

	copy_address(key.addr, c->dst);
	copy_address(value.addr, c->dst);
	if (!bpf_map_lookup_elem(&flows, &key))
		bpf_map_update_elem(&flows, &key, &value, BPF_NOEXIST);
}

struct sockaddr_v4 {
	__u16 family;
	__u16 port;
	__u32 addr;
	__u8 zero[8];
};

struct sockaddr_v6 {
	__u16 family;
	__u16 port;
	__u32 flow;
	__u32 addr[4];
	__u32 scope;
};

SEC("cgroup/connect4")
int guard_connect4(struct bpf_sock_addr *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct bpf_sock *sk = ctx->sk;
	struct call c = { .hook = HOOK_CONNECT };
	struct sockaddr_v4 source = { .family = AF_INET };
	bool implied;
	int outcome;

	if (!sk)
		return REFUSE;
	c.instance = me->instance;
	c.proto = transport(ctx->protocol);
	c.port = bpf_ntohs((__u16)ctx->user_port);
	set_mapped(c.dst, ctx->user_ip4);
	outcome = decide(ctx, &c);
	if (outcome == OUTCOME_REFUSE)
		return REFUSE;
	if (outcome != OUTCOME_PRIVATE) {
		forget_origin(ctx);
		set_mark(ctx, 0);
		return ALLOW;
	}
	implied = is_implied(&c, sk);
	/* The peer must see who calls. A socket that has a port on all addresses can't be bound again and would come
	 * from 127.0.0.1, which servers take for the host. No TCP client needs that; datagram clients do it often.
	 */
	if (sk->src_ip4 == 0) {
		if (sk->src_port == 0) {
			source.addr = c.instance;
			if (bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source)))
				return REFUSE;
		} else if (c.proto == IPPROTO_TCP) {
			refuse(&c, REASON_FOREIGN_ADDRESS);
			return REFUSE;
		}
	} else if (!is_loopback(sk->src_ip4)) {
		/* A datagram socket keeps the host's address that it got when it was connected outside. */
		refuse(&c, REASON_FOREIGN_ADDRESS);
		return REFUSE;
	}
	set_mark(ctx, SOCKET_MARK);
	if (implied)
		forget_origin(ctx);
	else
		remember_origin(ctx, &c);
	if (c.to != ctx->user_ip4 || c.to_port != c.port) {
		if (c.proto == IPPROTO_UDP) {
			__u32 to[4];

			set_mapped(to, c.to);
			remember_flow(ctx, to, c.to_port, c.dst, c.port);
		}
		STORE(ctx->user_ip4, c.to);
		STORE(ctx->user_port, bpf_htons(c.to_port));
	}
	return ALLOW;
}

static __always_inline bool is_v6only(struct bpf_sock *sk, __u32 protocol)
{
	struct sock_common *common;

	if (protocol == IPPROTO_TCP)
		common = (struct sock_common *)bpf_skc_to_tcp6_sock(sk);
	else
		common = (struct sock_common *)bpf_skc_to_udp6_sock(sk);
	return common && BPF_CORE_READ_BITFIELD(common, skc_ipv6only);
}

SEC("cgroup/connect6")
int guard_connect6(struct bpf_sock_addr *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct bpf_sock *sk = ctx->sk;
	struct call c = { .hook = HOOK_CONNECT };
	struct sockaddr_v6 source = { .family = AF_INET6 };
	__u32 to[4], from[4];
	bool real6, implied;
	int outcome;

	if (!sk)
		return REFUSE;
	c.instance = me->instance;
	c.proto = transport(ctx->protocol);
	c.port = bpf_ntohs((__u16)ctx->user_port);
	LOAD4(c.dst, ctx->user_ip6);
	outcome = decide(ctx, &c);
	if (outcome == OUTCOME_REFUSE)
		return REFUSE;
	if (outcome != OUTCOME_PRIVATE) {
		forget_origin(ctx);
		set_mark(ctx, 0);
		return ALLOW;
	}
	/* Only an IPv6 socket that can't speak IPv4 stays with IPv6. */
	real6 = is_private6(c.dst) || is_v6only(sk, ctx->protocol);
	implied = !real6 && is_implied(&c, sk);
	if (real6) {
		set_private6(to, c.to == own_localhost(c.instance) ? c.instance : c.to);
		set_private6(source.addr, c.instance);
	} else {
		set_mapped(to, c.to);
		set_mapped(source.addr, c.instance);
	}
	if (sk->src_ip6[0] == 0 && sk->src_ip6[1] == 0 && sk->src_ip6[2] == 0 && sk->src_ip6[3] == 0) {
		if (sk->src_port == 0) {
			if (bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source)))
				return REFUSE;
		} else if (c.proto == IPPROTO_TCP || real6) {
			/* With IPv6 the kernel would even pick another service's address: all of them are on loopback. */
			refuse(&c, REASON_FOREIGN_ADDRESS);
			return REFUSE;
		}
	} else {
		LOAD4(from, sk->src_ip6);
		if (is_mapped(from) ? !is_loopback(from[3]) : (!is_private6(from) || from[3] != c.instance)) {
			refuse(&c, REASON_FOREIGN_ADDRESS);
			return REFUSE;
		}
	}
	set_mark(ctx, SOCKET_MARK);
	if (implied)
		forget_origin(ctx);
	else
		remember_origin(ctx, &c);
	if (to[0] != c.dst[0] || to[1] != c.dst[1] || to[2] != c.dst[2] || to[3] != c.dst[3] || c.to_port != c.port) {
		if (c.proto == IPPROTO_UDP)
			remember_flow(ctx, to, c.to_port, c.dst, c.port);
		STORE4(ctx->user_ip6, to);
		STORE(ctx->user_port, bpf_htons(c.to_port));
	}
	return ALLOW;
}

SEC("cgroup/sendmsg4")
int guard_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct bpf_sock *sk = ctx->sk;
	struct call c = { .hook = HOOK_SEND, .proto = IPPROTO_UDP };
	__u32 source = ctx->msg_src_ip4;
	__u32 to[4];
	int outcome;

	if (!sk)
		return REFUSE;
	c.instance = me->instance;
	if (ctx->user_family == 0 && ctx->user_ip4 == 0 && ctx->user_port == 0) {
		/* A connected socket that also sends control data: the destination was judged when it connected,
		 * but the control data may name a source address. (A destination of family AF_UNSPEC, which Linux takes
		 * for IPv4, has a port.) */
		set_mapped(c.dst, sk->dst_ip4);
		c.port = bpf_ntohs(sk->dst_port);
		if (source != 0 && is_loopback(source) && source != c.instance &&
		    source != own_localhost(c.instance) && !(sk->src_ip4 == source)) {
			refuse(&c, REASON_FOREIGN_ADDRESS);
			return REFUSE;
		}
		if (is_loopback(sk->dst_ip4) && sk->src_ip4 != source) {
			STORE(ctx->msg_src_ip4, c.instance);
		}
		return ALLOW;
	}
	c.port = bpf_ntohs((__u16)ctx->user_port);
	set_mapped(c.dst, ctx->user_ip4);
	outcome = decide(ctx, &c);
	if (outcome == OUTCOME_REFUSE)
		return REFUSE;
	if (outcome == OUTCOME_ANSWER)
		return ALLOW;
	if (outcome == OUTCOME_PRIVATE) {
		STORE(ctx->msg_src_ip4, c.to == own_localhost(c.instance) && source == c.to ? c.to : c.instance);
		if (c.to != ctx->user_ip4 || c.to_port != c.port) {
			set_mapped(to, c.to);
			remember_flow(ctx, to, c.to_port, c.dst, c.port);
			STORE(ctx->user_ip4, c.to);
			STORE(ctx->user_port, bpf_htons(c.to_port));
		}
		return ALLOW;
	}
	/* From a private address nothing gets outside, and 127.0.0.1 means the host to its services. */
	if (is_loopback(source))
		STORE(ctx->msg_src_ip4, 0);
	remember_outside(ctx, &c);
	return ALLOW;
}

SEC("cgroup/sendmsg6")
int guard_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct bpf_sock *sk = ctx->sk;
	struct call c = { .hook = HOOK_SEND, .proto = IPPROTO_UDP };
	__u32 source[4], to[4];
	int outcome;

	if (!sk)
		return REFUSE;
	LOAD4(source, ctx->msg_src_ip6);
	c.instance = me->instance;
	if (ctx->user_family == 0) {
		LOAD4(c.dst, sk->dst_ip6);
		c.port = bpf_ntohs(sk->dst_port);
		if (is_private6(source) && source[3] != c.instance) {
			refuse(&c, REASON_FOREIGN_ADDRESS);
			return REFUSE;
		}
		/* Nor may it come from ::1 or an address of the host. */
		if (is_private6(c.dst)) {
			set_private6(source, c.instance);
			STORE4(ctx->msg_src_ip6, source);
		}
		return ALLOW;
	}
	c.port = bpf_ntohs((__u16)ctx->user_port);
	LOAD4(c.dst, ctx->user_ip6);
	outcome = decide(ctx, &c);
	if (outcome == OUTCOME_REFUSE)
		return REFUSE;
	if (outcome == OUTCOME_ANSWER)
		return ALLOW;
	if (outcome == OUTCOME_PRIVATE) {
		/* Linux refuses a mapped address here (errno 524), so only the own IPv6 address can stand in. */
		if (!is_private6(c.dst) && service_of(c.to) != service_of(c.instance) &&
		    c.to != own_localhost(c.instance)) {
			refuse(&c, REASON_IPV6_LOCAL_DATAGRAM);
			return REFUSE;
		}
		set_private6(to, c.to == own_localhost(c.instance) ? c.instance : c.to);
		set_private6(source, c.instance);
		STORE4(ctx->msg_src_ip6, source);
		remember_flow(ctx, to, c.to_port, c.dst, c.port);
		STORE4(ctx->user_ip6, to);
		STORE(ctx->user_port, bpf_htons(c.to_port));
		return ALLOW;
	}
	if (is_private6(source) || (source[0] == 0 && source[1] == 0 && source[2] == 0)) {
		STORE(ctx->msg_src_ip6[0], 0);
		STORE(ctx->msg_src_ip6[1], 0);
		STORE(ctx->msg_src_ip6[2], 0);
		STORE(ctx->msg_src_ip6[3], 0);
	}
	remember_outside(ctx, &c);
	return ALLOW;
}

/* ---- how it looks to the program: these three can't refuse, the verifier wants 1 ---- */

SEC("cgroup/recvmsg4")
int guard_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct flow_key key = { .cookie = bpf_get_socket_cookie(ctx), .port = bpf_ntohs((__u16)ctx->user_port) };
	struct origin *origin;

	set_mapped(key.addr, ctx->user_ip4);
	origin = bpf_map_lookup_elem(&flows, &key);
	if (origin && is_mapped(origin->addr)) {
		STORE(ctx->user_ip4, origin->addr[3]);
		STORE(ctx->user_port, bpf_htons(origin->port));
	}
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int guard_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct flow_key key = { .cookie = bpf_get_socket_cookie(ctx), .port = bpf_ntohs((__u16)ctx->user_port) };
	struct origin *origin;

	LOAD4(key.addr, ctx->user_ip6);
	origin = bpf_map_lookup_elem(&flows, &key);
	if (origin) {
		STORE4(ctx->user_ip6, origin->addr);
		STORE(ctx->user_port, bpf_htons(origin->port));
	}
	return ALLOW;
}

SEC("cgroup/getpeername4")
int guard_getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 peer = ctx->user_ip4;
	struct origin *origin;

	if (!sk)
		return ALLOW;
	origin = bpf_sk_storage_get(&origins, sk, 0, 0);
	if (origin && is_mapped(origin->addr)) {
		STORE(ctx->user_ip4, origin->addr[3]);
		STORE(ctx->user_port, bpf_htons(origin->port));
	} else if (!origin && implied_origin(sk, &peer)) {
		STORE(ctx->user_ip4, peer);
	}
	return ALLOW;
}

SEC("cgroup/getpeername6")
int guard_getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct origin *origin;
	__u32 peer[4];

	if (!sk)
		return ALLOW;
	origin = bpf_sk_storage_get(&origins, sk, 0, 0);
	if (origin) {
		STORE4(ctx->user_ip6, origin->addr);
		STORE(ctx->user_port, bpf_htons(origin->port));
	} else {
		LOAD4(peer, ctx->user_ip6);
		if (is_mapped(peer) && implied_origin(sk, &peer[3]))
			STORE(ctx->user_ip6[3], peer[3]);
	}
	return ALLOW;
}

/* ---- bind ---- */

SEC("cgroup/bind4")
int guard_bind4(struct bpf_sock_addr *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct call c = { .hook = HOOK_BIND };
	int outcome;

	c.instance = me->instance;
	c.proto = transport(ctx->protocol);
	c.port = bpf_ntohs((__u16)ctx->user_port);
	set_mapped(c.dst, ctx->user_ip4);
	outcome = decide_bind(&c);
	if (outcome != BIND_REFUSE && c.proto == IPPROTO_TCP)
		set_mark(ctx, SOCKET_MARK_BOUND);
	switch (outcome) {
	case BIND_AS_IS:
		return ALLOW;
	case BIND_OWN:
		STORE(ctx->user_ip4, c.to);
		STORE(ctx->user_port, bpf_htons(c.to_port));
		return ALLOW_LOW_PORT;
	case BIND_PUBLIC:
		STORE(ctx->user_port, bpf_htons(c.to_port));
		return ALLOW_LOW_PORT;
	case BIND_PUBLIC_ONE:
		if (!is_mapped(c.dst)) {
			/* Published on an IPv6 address only: an IPv4 socket stays private. */
			STORE(ctx->user_ip4, c.to);
			return ALLOW_LOW_PORT;
		}
		STORE(ctx->user_ip4, c.dst[3]);
		STORE(ctx->user_port, bpf_htons(c.to_port));
		return ALLOW_LOW_PORT;
	}
	return REFUSE;
}

SEC("cgroup/bind6")
int guard_bind6(struct bpf_sock_addr *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct bpf_sock *sk = ctx->sk;
	struct call c = { .hook = HOOK_BIND };
	__u32 to[4];
	bool v6only;
	int outcome;

	if (!sk)
		return REFUSE;
	c.instance = me->instance;
	c.proto = transport(ctx->protocol);
	c.port = bpf_ntohs((__u16)ctx->user_port);
	LOAD4(c.dst, ctx->user_ip6);
	v6only = is_v6only(sk, ctx->protocol);
	outcome = decide_bind(&c);
	if (outcome != BIND_REFUSE && c.proto == IPPROTO_TCP)
		set_mark(ctx, SOCKET_MARK_BOUND);
	switch (outcome) {
	case BIND_AS_IS:
		return ALLOW;
	case BIND_OWN:
		if (v6only || is_private6(c.dst))
			set_private6(to, c.instance);
		else
			set_mapped(to, c.to);
		break;
	case BIND_PUBLIC:
		STORE(ctx->user_port, bpf_htons(c.to_port));
		return ALLOW_LOW_PORT;
	case BIND_PUBLIC_ONE:
		if (v6only && is_mapped(c.dst)) {
			/* Published on an IPv4 address only: an IPv6-only socket stays private. */
			set_private6(to, c.instance);
			c.to_port = c.port;
		} else {
			copy_address(to, c.dst);
		}
		break;
	default:
		return REFUSE;
	}
	STORE4(ctx->user_ip6, to);
	STORE(ctx->user_port, bpf_htons(c.to_port));
	return ALLOW_LOW_PORT;
}

/* ---- what there is besides addresses ---- */

SEC("cgroup/sock_create")
int guard_sock_create(struct bpf_sock *ctx)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	__u32 type = ctx->type, protocol = ctx->protocol;
	struct call c = { .hook = HOOK_SOCKET };

	/* Fires for AF_INET and AF_INET6 only; other families are the seccomp filter's. */
	if (me->instance && ((type == SOCK_STREAM && protocol == IPPROTO_TCP) ||
			     (type == SOCK_DGRAM && (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE_)))) {
		ctx->mark = SOCKET_MARK;
		return ALLOW;
	}
	c.instance = me->instance;
	c.family = ctx->family;
	c.type = type;
	/* Programs try MPTCP (protocol 262) first and fall back to TCP; that is no event. */
	c.port = protocol;
	if (protocol != 262)
		refuse(&c, REASON_SOCKET_TYPE);
	return REFUSE;
}
