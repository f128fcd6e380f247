// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Abstract unix sockets have no file, so neither mounts nor permissions keep services apart: they are refused.
 * Its own object, because the hooks exist only from Linux 6.7 on and need a kernel function (kfunc).
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "guard.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct identity {
	__u32 instance;
	__u32 count; /* refusals reported since `window_ns`: a flood must not push other events out of the ring */
	__u64 window_ns;
};

#define REPORTS_PER_SECOND 8

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, struct identity);
} unix_identities SEC(".maps");

/* The guard's ring buffer, shared by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

struct sockaddr {
	unsigned short sa_family;
	char sa_data[14];
} __attribute__((preserve_access_index));

struct bpf_sock_addr_kern {
	struct sockaddr *uaddr;
	int uaddrlen;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

static __always_inline int judge(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_addr_kern *kern = bpf_cast_to_kern_ctx(ctx);
	struct identity *me = bpf_get_local_storage(&unix_identities, 0);
	__u64 now = bpf_ktime_get_boot_ns();
	char name[16] = {};
	struct event *e;

	/* The family alone is an unnamed address: a datagram socket that disconnects. */
	if (kern->uaddrlen <= 2)
		return 1;
	if (bpf_probe_read_kernel(name, sizeof(name), (char *)kern->uaddr + 2))
		return 0;
	if (name[0] != 0)
		return 1;
	if (now - me->window_ns > 1000000000ULL) {
		me->window_ns = now;
		me->count = 0;
	}
	if (me->count >= REPORTS_PER_SECOND)
		return 0;
	me->count++;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (e) {
		__builtin_memset(e, 0, sizeof(*e));
		e->time_ns = now;
		e->instance = me->instance;
		e->pid = bpf_get_current_pid_tgid() >> 32;
		e->uid = (__u32)bpf_get_current_uid_gid();
		/* The start of the name, without the NUL that makes it abstract. */
		__builtin_memcpy(e->addr, name + 1, 15);
		e->kind = EVENT_REFUSED;
		e->hook = HOOK_UNIX;
		e->reason = REASON_ABSTRACT_UNIX;
		e->family = 1;
		bpf_get_current_comm(e->comm, sizeof(e->comm));
		bpf_ringbuf_submit(e, 0);
	}
	return 0;
}

SEC("cgroup/connect_unix")
int guard_connect_unix(struct bpf_sock_addr *ctx)
{
	return judge(ctx);
}

SEC("cgroup/sendmsg_unix")
int guard_sendmsg_unix(struct bpf_sock_addr *ctx)
{
	return judge(ctx);
}
