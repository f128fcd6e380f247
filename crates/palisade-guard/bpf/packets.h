// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What no hook of a system call can hold: packets. `guard_ingress` and `guard_egress` run for each of them; they leave after
 * a few loads unless the packet opens something, comes from outside, or leaves the host.
 */
#ifndef PALISADE_PACKETS_H
#define PALISADE_PACKETS_H

#include "connect.h"

/* The kernel delivers what is for a private address by whatever interface it came: with IPv6 always, with IPv4 where
 * `route_localnet` is set. Services and the host itself come by loopback.
 */
static __always_inline bool is_from_outside(struct __sk_buff *skb)
{
	__u32 to[4];

	if (skb->ifindex == LOOPBACK_IFINDEX)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return bpf_skb_load_bytes(skb, 16, to, 4) || in_private(to[0]) || in_own_localhosts(to[0]);
	return bpf_skb_load_bytes(skb, 24, to, 16) || is_private6(to);
}

static __noinline int refuse_from_outside(struct __sk_buff *skb, __u8 protocol, __u16 port)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct call c = { .hook = HOOK_RECEIVE };
	__u32 from;

	c.instance = me->instance;
	c.proto = transport(protocol);
	c.port = port;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 12, &from, 4))
			return REFUSE;
		set_mapped(c.dst, from);
	} else if (bpf_skb_load_bytes(skb, 8, c.dst, 16)) {
		return REFUSE;
	}
	refuse(&c, REASON_FROM_OUTSIDE);
	return REFUSE;
}

/* Listening or receiving without a bind, and wildcard sockets: no bind hook can hold them, so what arrives is checked. */
static __noinline int judge_received(struct __sk_buff *skb)
{
	struct identity *me;
	struct bpf_sock *sk = skb->sk;
	struct call c = { .hook = HOOK_RECEIVE };
	struct rule *rule, *mine;
	struct flow_key key = {};
	__u32 destination[4], source[4];
	__u16 source_port = 0;
	__u32 header_len;
	void *policy;

	if (!sk)
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return ALLOW; /* a half-open or closing connection of a listener that was checked */
	/* By the packet, not the socket: `enter` leads packets for public addresses to the same listeners. */
	if (is_from_outside(skb))
		return refuse_from_outside(skb, sk->protocol, sk->src_port);
	me = bpf_get_local_storage(&identities, 0);
	c.instance = me->instance;
	if (sk->protocol == IPPROTO_TCP) {
		if (sk->state != BPF_TCP_LISTEN)
			return ALLOW;
		/* Bound to the instance's own address: nothing arrives but what is for it, or what `enter` led there. */
		if (c.instance && (sk->src_ip4 == c.instance || sk->src_ip4 == own_localhost(c.instance)))
			return ALLOW;
		LOAD4(source, sk->src_ip6);
		if (c.instance && sk->family == AF_INET6 && is_private6(source) && source[3] == c.instance)
			return ALLOW;
		c.proto = IPPROTO_TCP;
	} else {
		c.proto = IPPROTO_UDP;
	}
	c.port = sk->src_port;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u32 pair[2];
		__u8 first;

		if (bpf_skb_load_bytes(skb, 12, pair, 8))
			return REFUSE;
		/* Between services. */
		if (c.instance && pair[1] == c.instance && in_private(pair[0]))
			return ALLOW;
		if (bpf_skb_load_bytes(skb, 0, &first, 1))
			return REFUSE;
		set_mapped(source, pair[0]);
		set_mapped(destination, pair[1]);
		header_len = (first & 15) * 4;
		if (in_private(pair[1]) || in_own_localhosts(pair[1])) {
			if (pair[1] != c.instance && pair[1] != own_localhost(c.instance))
				goto refused;
			/* A process of the host asks; without a flow it would get no answer. */
			if (c.proto == IPPROTO_UDP && !in_private(pair[0]) && !in_own_localhosts(pair[0]) &&
			    !bpf_skb_load_bytes(skb, header_len, &source_port, 2)) {
				struct origin value = { .port = bpf_ntohs(source_port) };

				key.cookie = bpf_get_socket_cookie(skb);
				key.port = value.port;
				copy_address(key.addr, source);
				copy_address(value.addr, source);
				bpf_map_update_elem(&flows, &key, &value, BPF_ANY);
			}
			return ALLOW;
		}
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 8, source, 16) || bpf_skb_load_bytes(skb, 24, destination, 16))
			return REFUSE;
		header_len = 40; /* with extension headers the port below is wrong: then no flow is found */
		if (is_private6(destination)) {
			if (destination[3] == c.instance)
				return ALLOW;
			goto refused;
		}
	} else {
		return REFUSE;
	}
	policy = current_policy();
	if (!policy)
		return REFUSE;
	if (c.proto == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, header_len, &source_port, 2))
			return REFUSE;
		key.cookie = bpf_get_socket_cookie(skb);
		key.port = bpf_ntohs(source_port);
		copy_address(key.addr, source);
	}
	rule = c.proto == IPPROTO_UDP ? find(policy, RULE_PUBLISHED, c.proto, c.port, 0, 0) : 0;
	if (rule && rule->addr[0] == service_of(c.instance)) {
		mine = find(policy, RULE_SERVICE, 0, 0, 0, service_of(c.instance));
		/* Without a flow neither a process of the host gets an answer, nor somebody outside whom the service may not
		 * write to of its own accord.
		 */
		if (mine && (skb->ifindex == LOOPBACK_IFINDEX || !(mine->flags & SERVICE_EGRESS_ALL))) {
			struct origin value = { .port = key.port };

			copy_address(value.addr, key.addr);
			bpf_map_update_elem(&flows, &key, &value, BPF_NOEXIST);
		}
		return ALLOW;
	}
	if (c.proto == IPPROTO_UDP && bpf_map_lookup_elem(&flows, &key))
		return ALLOW;
refused:
	copy_address(c.dst, source);
	refuse(&c, REASON_UNDECLARED_LISTENER);
	return REFUSE;
}

static __always_inline bool is_at_private(const struct bpf_sock *sk)
{
	return in_private(sk->src_ip4) || in_own_localhosts(sk->src_ip4) ||
	       (sk->family == AF_INET6 && sk->src_ip6[0] == bpf_htonl(0xfd70616c) &&
		sk->src_ip6[1] == bpf_htonl(0x69736164));
}

/* Runs for each packet, so whatever is not new or unconnected leaves after a few loads. Of a datagram socket's states
 * only these two are used; connected, the kernel delivers only what comes from its peer, or from outside in its name.
 */
SEC("cgroup_skb/ingress")
int guard_ingress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return ALLOW;
	if (sk->state == BPF_TCP_LISTEN || sk->state == BPF_TCP_CLOSE)
		return judge_received(skb);
	if (skb->ifindex == LOOPBACK_IFINDEX || !is_at_private(sk))
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	return sk ? refuse_from_outside(skb, sk->protocol, sk->src_port) : REFUSE;
}

/* What leaves by loopback to an address of the host's that isn't a loopback address. `decide` may have taken it for
 * somebody else's: an address may be new, or known to the routes alone. So the policy is asked once more, of what opens
 * something.
 */
static __noinline int judge_looped(struct __sk_buff *skb)
{
	struct identity *me = bpf_get_local_storage(&identities, 0);
	struct bpf_sock *sk = skb->sk;
	struct call c = { .hook = HOOK_SEND };
	void *policy = current_policy();
	__u32 destination, header_len, service;
	struct rule *mine;
	__u16 port;
	__u8 byte;

	if (!sk)
		return REFUSE;
	sk = bpf_sk_fullsock(sk);
	if (!sk || !policy)
		return REFUSE;
	if (sk->protocol == IPPROTO_TCP && sk->state != BPF_TCP_SYN_SENT)
		return ALLOW;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, &byte, 1) || bpf_skb_load_bytes(skb, 16, &destination, 4))
			return REFUSE;
		header_len = (byte & 15) * 4;
		set_mapped(c.dst, destination);
	} else {
		if (bpf_skb_load_bytes(skb, 6, &byte, 1) || bpf_skb_load_bytes(skb, 24, c.dst, 16))
			return REFUSE;
		/* Nothing needs extension headers here. */
		if (byte != sk->protocol)
			return REFUSE;
		header_len = 40;
	}
	if (bpf_skb_load_bytes(skb, header_len + 2, &port, 2))
		return REFUSE;
	c.instance = me->instance;
	c.proto = transport(sk->protocol);
	c.port = bpf_ntohs(port);
	service = service_of(c.instance);
	mine = find(policy, RULE_SERVICE, 0, 0, 0, service);
	if (mine && (find(policy, RULE_HOST_PORT, 0, c.port, service, 0) ||
		     is_resolver(policy, mine, service, c.dst, c.port) ||
		     (c.proto == IPPROTO_UDP && is_answer(skb, &c))))
		return ALLOW;
	refuse(&c, REASON_HOST_PORT);
	return REFUSE;
}

/* To a private address, or to another loopback address, of which `decide` needs to be told by nobody. */
static __always_inline bool to_loopback(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 *to = data + 24;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		return data + 20 <= end && is_loopback(*(__u32 *)(data + 16));
	return data + 40 <= end && (is_private6(to) || is_localhost6(to));
}

/* A packet with a source route goes first to an address that no hook has judged. Nothing else needs what is refused
 * here: IPv4 options, IPv6 routing and destination headers.
 */
SEC("cgroup_skb/egress")
int guard_egress(struct __sk_buff *skb)
{
	struct identity *me;
	struct call c = { .hook = HOOK_SEND };
	__u32 destination;
	__u8 byte;

	/* Between services nothing is routed: by way of whomever, a packet ends at the destination that was judged. So
	 * their traffic pays for a few loads only.
	 */
	if (skb->ifindex == LOOPBACK_IFINDEX)
		return to_loopback(skb) ? ALLOW : judge_looped(skb);
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, &byte, 1))
			return REFUSE;
		if (byte == 0x45)
			return ALLOW;
		if (bpf_skb_load_bytes(skb, 16, &destination, 4))
			return REFUSE;
		set_mapped(c.dst, destination);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 6, &byte, 1))
			return REFUSE;
		/* Very large segments have a header of the kernel's own in front. */
		if (byte == 0 && bpf_skb_load_bytes(skb, 40, &byte, 1))
			return REFUSE;
		if (byte != IPPROTO_ROUTING_ && byte != IPPROTO_DSTOPTS_)
			return ALLOW;
		if (bpf_skb_load_bytes(skb, 24, c.dst, 16))
			return REFUSE;
	} else {
		return REFUSE;
	}
	me = bpf_get_local_storage(&identities, 0);
	c.instance = me->instance;
	refuse(&c, REASON_EGRESS);
	return REFUSE;
}

#endif
