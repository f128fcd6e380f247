// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a socket may be bound to, and what it is really bound to: `decide_bind`.
 */
#ifndef PALISADE_BIND_H
#define PALISADE_BIND_H

#include "call.h"

enum bind_outcome {
	BIND_REFUSE = 0,
	BIND_AS_IS = 1,
	BIND_OWN = 2,       /* to `to`:`to_port`, an address of the instance */
	BIND_PUBLIC = 3,    /* datagrams: stays with its address, on `to_port` */
	BIND_PUBLIC_ONE = 4, /* datagrams: to the published host address in `dst`, on `to_port` */
};

static __noinline int decide_bind(struct call *c)
{
	void *policy = current_policy();
	__u32 service = service_of(c->instance);
	bool wildcard, loopback, mapped = is_mapped(c->dst);
	struct rule *mine, *rule;
	struct address key;

	if (!policy || !c->instance)
		return refuse(c, REASON_NO_POLICY);
	mine = find(policy, RULE_SERVICE, 0, 0, 0, service);
	if (!mine)
		return refuse(c, REASON_NO_POLICY);
	c->to = c->instance;
	c->to_port = c->port;
	if (is_private6(c->dst) || (mapped && in_private(c->dst[3]))) {
		if (c->dst[3] != c->instance)
			return refuse(c, REASON_FOREIGN_ADDRESS);
		return BIND_OWN;
	}
	if (mapped && in_own_localhosts(c->dst[3])) {
		if (c->dst[3] != own_localhost(c->instance))
			return refuse(c, REASON_FOREIGN_ADDRESS);
		c->to = c->dst[3];
		return BIND_OWN;
	}
	wildcard = c->dst[0] == 0 && c->dst[1] == 0 && c->dst[3] == 0 && (mapped || c->dst[2] == 0);
	loopback = mapped ? is_loopback(c->dst[3]) : is_localhost6(c->dst);
	if (loopback) {
		if (!(mine->flags & SERVICE_HOST_MODE))
			c->to = own_localhost(c->instance);
		return BIND_OWN;
	}
	/* A datagram socket without a port of its own is a client; `ingress` keeps strangers away from it. One that
	 * may go nowhere but to peers is better off with the address that they know. */
	if (wildcard && c->port == 0 && c->proto == IPPROTO_UDP && ((mine->flags & SERVICE_EGRESS_ALL) || mine->port))
		return BIND_AS_IS;
	rule = find(policy, RULE_BIND, c->proto, c->port, 0, service);
	if (wildcard) {
		if (learns(mine))
			report(c, EVENT_USED);
		else if (!rule && (mine->flags & SERVICE_STRICT))
			return refuse(c, REASON_UNDECLARED_PORT);
		/* What arrives at a published TCP port is led to the instance's own address, see `enter.h`. */
		if (!rule || !(rule->flags & BIND_PUBLISHED) || c->proto == IPPROTO_TCP)
			return BIND_OWN;
		c->to_port = rule->port;
		if (rule->prefix == 0)
			return BIND_PUBLIC;
		copy_address(c->dst, rule->addr);
		return BIND_PUBLIC_ONE;
	}
	/* An address of the host by number: only where the port is published on it. */
	copy_address(key.word, c->dst);
	if (rule && (rule->flags & BIND_PUBLISHED) && bpf_map_lookup_elem(&host_addresses, &key) &&
	    (rule->prefix == 0 || (rule->addr[0] == c->dst[0] && rule->addr[1] == c->dst[1] &&
				   rule->addr[2] == c->dst[2] && rule->addr[3] == c->dst[3]))) {
		if (c->proto == IPPROTO_TCP)
			return BIND_OWN;
		c->to_port = rule->port;
		return BIND_PUBLIC;
	}
	return refuse(c, REASON_FOREIGN_ADDRESS);
}

#endif
