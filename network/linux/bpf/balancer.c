// The socket load balancer. A socket of a container that connects or sends to a virtual address gets a backend's address
// in its place, before the kernel looks for a route; what comes back is shown as from the virtual address. So nothing is
// translated packet by packet, and a connection lasts as long as its ends want.
//
// The maps are a function of what the node's network should be (balancer_tables.go): a network namespace has a view, the
// networks it is in; in a view an address is a service's, of a generation; a generation has its backends by number. A new
// generation's backends are written before any view leads to them and the old ones removed after, and a program that
// reads a backend looks whether its generation is still the one in force. All addresses are 16 bytes, IPv4 mapped.
#include "kernel.h"

struct address { __u32 word[4]; };
struct vip_key { __u64 view; struct address vip; };
struct vip { __u64 service, generation; __u32 backends, balance; };
struct backend_key { __u64 service, generation; __u32 slot, zero; };
struct member_key { __u64 service; struct address backend; };
struct client_key { __u64 netns, service; };
struct flow_key { __u64 socket; struct address remote; __u32 port, zero; };
struct peer { __u64 service; struct address vip, backend; __u32 port, counted; };

enum { BALANCE_RANDOM, BALANCE_CLIENT, BALANCE_LEAST };

// By a network namespace's cookie: its view.
struct { uint(type, BPF_MAP_TYPE_HASH); uint(map_flags, BPF_F_NO_PREALLOC); uint(max_entries, 16384); type(key, __u64); type(value, __u64); } netns SEC(".maps");
struct { uint(type, BPF_MAP_TYPE_HASH); uint(map_flags, BPF_F_NO_PREALLOC); uint(max_entries, 65536); type(key, struct vip_key); type(value, struct vip); } vips SEC(".maps");
struct { uint(type, BPF_MAP_TYPE_HASH); uint(map_flags, BPF_F_NO_PREALLOC); uint(max_entries, 131072); type(key, struct backend_key); type(value, struct address); } backends SEC(".maps");
// Who serves now, with the connections that this node's sockets have there (counted only where the balance asks for it).
struct { uint(type, BPF_MAP_TYPE_HASH); uint(map_flags, BPF_F_NO_PREALLOC); uint(max_entries, 131072); type(key, struct member_key); type(value, __s64); } members SEC(".maps");
// Which backend a namespace has been given.
struct { uint(type, BPF_MAP_TYPE_LRU_HASH); uint(max_entries, 8192); type(key, struct client_key); type(value, struct address); } clients SEC(".maps");
// Of sockets that send without being connected: from the virtual address to the backend, and back.
struct { uint(type, BPF_MAP_TYPE_LRU_HASH); uint(max_entries, 32768); type(key, struct flow_key); type(value, struct address); } flows SEC(".maps");
// By a connected socket's cookie: what its program believes it is connected to. Goes with the socket; only those that
// multipath TCP opens inside are never told of, so the oldest make place. (Storage in the socket itself costs ten times as
// much.)
struct { uint(type, BPF_MAP_TYPE_LRU_HASH); uint(max_entries, 65536); type(key, __u64); type(value, struct peer); } peers SEC(".maps");

// refusal is what connect says where nobody serves; 0 on kernels whose programs can't choose (before 5.18): EPERM.
const volatile int refusal = ECONNREFUSED;

enum { REFUSED, ALLOWED }; // what programs return
enum { ELSEWHERE, FOUND, NOBODY };
enum { TRIES = 4 };

inline int same(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

inline int refuse(void)
{
	if (refusal)
		bpf_set_retval(-refusal);
	return REFUSED;
}

inline __s64 *member(__u64 service, const struct address *backend)
{
	struct member_key key = {service, *backend};
	return bpf_map_lookup_elem(&members, &key);
}

inline struct address *at(const struct vip *vip, __u32 slot)
{
	struct backend_key key = {vip->service, vip->generation, slot, 0};
	return bpf_map_lookup_elem(&backends, &key);
}

// below draws a number below n.
inline __u32 below(__u32 n)
{
	return ((__u64)bpf_get_prandom_u32() * n) >> 32;
}

// lighter replaces the backend in a slot by another drawn at random, if that has fewer connections.
inline void lighter(const struct vip *vip, __u32 slot, struct address *backend)
{
	if (vip->backends < 2)
		return;
	slot += 1 + below(vip->backends - 1);
	struct address *other = at(vip, slot < vip->backends ? slot : slot - vip->backends);
	if (!other)
		return;
	struct address candidate = *other;
	__s64 *a = member(vip->service, backend), *b = member(vip->service, &candidate);
	if (a && b && *b < *a)
		*backend = candidate;
}

// choose finds a backend for a connection to key. One that is preferred is taken if it still serves.
inline int choose(const struct vip_key *key, __u64 cookie, const struct address *preferred, struct vip *vip, struct address *backend)
{
	struct client_key client = {cookie, 0};
	for (int i = 0; i < TRIES; i++) {
		struct vip *now = bpf_map_lookup_elem(&vips, key);
		if (!now)
			return i ? NOBODY : ELSEWHERE;
		*vip = *now;
		if (!vip->backends)
			return NOBODY;
		if (preferred && member(vip->service, preferred)) {
			*backend = *preferred;
			return FOUND;
		}
		struct address *drawn;
		if (vip->balance == BALANCE_CLIENT) {
			client.service = vip->service;
			drawn = bpf_map_lookup_elem(&clients, &client);
			if (drawn) {
				*backend = *drawn;
				if (member(vip->service, backend))
					return FOUND;
			}
		}
		__u32 slot = below(vip->backends);
		drawn = at(vip, slot);
		if (!drawn)
			continue; // replaced meanwhile
		*backend = *drawn;
		if (vip->balance == BALANCE_LEAST)
			lighter(vip, slot, backend);
		// A generation is removed after the last view has left it, so what was read while it is in force is whole.
		now = bpf_map_lookup_elem(&vips, key);
		if (!now || now->generation != vip->generation || now->service != vip->service)
			continue;
		if (vip->balance == BALANCE_CLIENT)
			bpf_map_update_elem(&clients, &client, backend, BPF_ANY);
		return FOUND;
	}
	return NOBODY;
}

// forget takes back what connect noted of a socket.
inline void forget(__u64 socket)
{
	struct peer *p = bpf_map_lookup_elem(&peers, &socket);
	if (!p)
		return;
	if (p->counted) {
		__s64 *connections = member(p->service, &p->backend);
		if (connections && *connections > 0)
			__sync_fetch_and_add(connections, -1);
	}
	bpf_map_delete_elem(&peers, &socket);
}

inline int connect(struct bpf_sock_addr *ctx, struct address *to)
{
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP && ctx->protocol != IPPROTO_MPTCP)
		return ALLOWED;
	__u64 cookie = bpf_get_netns_cookie(ctx);
	__u64 *view = bpf_map_lookup_elem(&netns, &cookie);
	if (!view)
		return ALLOWED;
	__u64 socket = bpf_get_socket_cookie(ctx);
	struct vip_key key = {*view, *to};
	struct vip vip = {};
	forget(socket); // it may have been connected before
	switch (choose(&key, cookie, 0, &vip, to)) {
	case ELSEWHERE:
		return ALLOWED;
	case NOBODY:
		return refuse();
	}
	struct peer p = {vip.service, key.vip, *to, ctx->user_port, 0};
	if (vip.balance == BALANCE_LEAST) {
		__s64 *connections = member(vip.service, to);
		if (connections) {
			__sync_fetch_and_add(connections, 1);
			p.counted = 1;
		}
	}
	bpf_map_update_elem(&peers, &socket, &p, BPF_ANY);
	return ALLOWED;
}

inline int send(struct bpf_sock_addr *ctx, struct address *to)
{
	if (ctx->protocol != IPPROTO_UDP)
		return ALLOWED;
	__u64 cookie = bpf_get_netns_cookie(ctx);
	__u64 *view = bpf_map_lookup_elem(&netns, &cookie);
	if (!view)
		return ALLOWED;
	struct vip_key key = {*view, *to};
	struct flow_key forth = {bpf_get_socket_cookie(ctx), *to, ctx->user_port, 0};
	struct address *last = bpf_map_lookup_elem(&flows, &forth);
	struct address before = {};
	if (last)
		before = *last;
	struct vip vip = {};
	switch (choose(&key, cookie, last ? &before : 0, &vip, to)) {
	case ELSEWHERE:
		return ALLOWED;
	case NOBODY:
		return refuse();
	}
	struct flow_key back = {forth.socket, *to, forth.port, 0};
	if (!last || !same(&before, to))
		bpf_map_update_elem(&flows, &forth, to, BPF_ANY);
	last = bpf_map_lookup_elem(&flows, &back);
	if (!last || !same(last, &key.vip))
		bpf_map_update_elem(&flows, &back, &key.vip, BPF_ANY);
	return ALLOWED;
}

// connected puts the virtual address in the place of the backend that a socket is connected to.
inline void connected(struct bpf_sock_addr *ctx, struct address *from)
{
	__u64 socket = bpf_get_socket_cookie(ctx);
	struct peer *p = bpf_map_lookup_elem(&peers, &socket);
	if (p && p->port == ctx->user_port && same(&p->backend, from))
		*from = p->vip;
}

inline void receive(struct bpf_sock_addr *ctx, struct address *from)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&netns, &cookie))
		return;
	if (ctx->sk->state == BPF_TCP_ESTABLISHED) {
		connected(ctx, from);
		return;
	}
	struct flow_key back = {bpf_get_socket_cookie(ctx), *from, ctx->user_port, 0};
	struct address *vip = bpf_map_lookup_elem(&flows, &back);
	if (vip)
		*from = *vip;
}

#define MAPPED 0xffff0000 // ::ffff:0:0/96 in network byte order
#define LOAD4 {{0, 0, MAPPED, ctx->user_ip4}}
#define STORE4 ctx->user_ip4 = a.word[3]
#define LOAD6 {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}}
#define STORE6 ctx->user_ip6[0] = a.word[0]; ctx->user_ip6[1] = a.word[1]; ctx->user_ip6[2] = a.word[2]; ctx->user_ip6[3] = a.word[3]

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD4;
	int verdict = connect(ctx, &a);
	STORE4;
	return verdict;
}

// An IPv4 address comes mapped here when the socket is of IPv6.
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD6;
	int verdict = connect(ctx, &a);
	STORE6;
	return verdict;
}

SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD4;
	int verdict = send(ctx, &a);
	STORE4;
	return verdict;
}

SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD6;
	int verdict = send(ctx, &a);
	STORE6;
	return verdict;
}

SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD4;
	receive(ctx, &a);
	STORE4;
	return ALLOWED;
}

SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD6;
	receive(ctx, &a);
	STORE6;
	return ALLOWED;
}

SEC("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD4;
	connected(ctx, &a);
	STORE4;
	return ALLOWED;
}

SEC("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx)
{
	struct address a = LOAD6;
	connected(ctx, &a);
	STORE6;
	return ALLOWED;
}

SEC("cgroup/sock_release") int release(struct bpf_sock *sk)
{
	forget(bpf_get_socket_cookie(sk)); // also when its namespace has left all networks meanwhile
	return ALLOWED;
}

char terms[] SEC("license") = "Apache-2.0";
