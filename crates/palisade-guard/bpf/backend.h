// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Which instance of a service a new connection goes to.
 */
#ifndef PALISADE_BACKEND_H
#define PALISADE_BACKEND_H

#include "call.h"

/* So many are drawn at random before all are walked: those beside one that is passed over get no more than the rest. */
#define DRAWS 16

/* The instance in a slot below `peer->count`, or 0. */
static __always_inline __u32 backend_at(void *policy, const struct rule *peer, __u32 server, __u32 slot)
{
	struct rule *backend;

	if (slot < NEAR_BACKENDS)
		return peer->addr[slot & (NEAR_BACKENDS - 1)];
	backend = find(policy, RULE_BACKEND, 0, slot, 0, server);
	return backend ? backend->addr[0] : 0;
}

static __always_inline bool is_suspended(const struct suspension *of, __u32 instance)
{
	__u32 number = bpf_ntohl(instance) & 0xff;

	return of && (of->bits[(number >> 6) & 3] >> (number & 63)) & 1;
}

/* MurmurHash3's last step: one bit of difference changes half of the bits. */
static __always_inline __u32 mix(__u32 value)
{
	value ^= value >> 16;
	value *= 0x85ebca6b;
	value ^= value >> 13;
	value *= 0xc2b2ae35;
	return value ^ (value >> 16);
}

/* The slot of the `attempt`-th candidate: drawn, then walked. `count` isn't 0. */
static __always_inline __u32 candidate_slot(__u32 random, __u32 attempt, __u32 count)
{
	return attempt < DRAWS ? mix(random + attempt) % count : attempt % count;
}

#define NO_CANDIDATE 0
#define NO_MORE_CANDIDATES 0xffffffff

/* The `attempt`-th candidate: its address, or NO_CANDIDATE for one that is suspended (`all`: they count, too). Global, as
 * are its callers, so that the verifier looks at each once and not at every way to it in every turn of a loop.
 */
__noinline __u32 candidate(__u32 server, __u32 random, __u32 attempt, __u32 all)
{
	void *policy = current_policy();
	struct suspension *suspension;
	struct rule *service;
	__u32 backend;

	if (!policy)
		return NO_MORE_CANDIDATES;
	service = find(policy, RULE_SERVICE, 0, 0, 0, server);
	if (!service || service->count == 0 || attempt >= DRAWS + service->count)
		return NO_MORE_CANDIDATES;
	backend = backend_at(policy, service, server, candidate_slot(random, attempt, service->count));
	if (all)
		return backend;
	suspension = bpf_map_lookup_elem(&suspended, &server);
	return is_suspended(suspension, backend) ? NO_CANDIDATE : backend;
}

/* One that isn't suspended, or 0. */
__noinline __u32 other_backend(__u32 server, __u32 random)
{
	__u32 backend, i;

	for (i = 0; i < DRAWS + INSTANCES_MAX; i++) {
		backend = candidate(server, random, i, 0);
		if (backend == NO_MORE_CANDIDATES)
			break;
		if (backend != NO_CANDIDATE)
			return backend;
	}
	return 0;
}

/* One that isn't suspended; if all are, any. */
static __always_inline __u32 choose_backend(void *policy, const struct rule *service, __u32 server, __u32 random)
{
	__u32 count = service->count, first, other;

	if (count == 0)
		return 0;
	first = backend_at(policy, service, server, random % count);
	if (count == 1 || !is_suspended(bpf_map_lookup_elem(&suspended, &server), first))
		return first;
	other = other_backend(server, random);
	return other ? other : first;
}

#endif
