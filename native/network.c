/*
 * Runs a program in a network namespace of its own, which has only a loopback. The PID stays the same. A second process, the
 * bridge, passes connections on between the namespace and the machine. It ends with the program.
 *
 *   copilotfleet-network [OPTION VALUE]... -- PROGRAM [ARGUMENT]...   runs PROGRAM, an absolute path
 *
 *   --port PORT        a connection to 127.0.0.1:PORT of the machine goes on to 127.0.0.1:PORT of the namespace. 0: only a trial
 *   --sockets FOLDER   a connection to 127.X.Y.Z:3128 of the namespace goes on to the Unix socket X.Y.Z in FOLDER
 *   --egress SOCKET    a connection to 127.0.0.1:3128 goes on to this Unix socket in FOLDER, which first gets a line with the
 *                      launch id: the value of COPILOTFLEET_LAUNCH_ID in the environment
 *   --public PASST     the namespace also has an interface to all public addresses, through the program passt at this path
 *   --blocked LIST     the addresses that this interface does not reach, such as 0a000000/8,a9fea9fe/32
 *   --cgroup FOLDER    the control group in which all of these processes run
 *
 * The program can also make no sockets of families that know no network namespaces. A virtual machine has such sockets to its
 * host (vsock). What fails ends this program with code 126 and a message.
 *
 * Another program restricts the rest (launcher.c). The bridge stays outside of that, so the program can neither signal it nor
 * look into it.
 */
#include <asm/socket.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/ioctl.h> /* for the next one */
#include <linux/if_tun.h>
#include <linux/in.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signal.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <linux/time_types.h>
#include <linux/uio.h>
#include <linux/un.h>

#define NAME "copilotfleet-network"
#include "program.h"

/* The kernel's headers for programs lack these. */
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_NONBLOCK O_NONBLOCK
#define SOCK_CLOEXEC O_CLOEXEC
#define MSG_PEEK 0x2
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_NOSIGNAL 0x4000
#define SHUT_WR 1
#define IFF_UP 0x1
#define RTF_UP 0x1
#define RTF_GATEWAY 0x2
#define RTF_REJECT 0x200
struct interface {
  char name[16];
  union {
    short flags;
    int mtu;
    struct sockaddr_in address;
    char rest[24];
  };
};
struct route {
  word unused;
  struct sockaddr_in target, gateway, mask;
  unsigned short flags;
  word rest[8];
};
struct message {
  void *name;
  unsigned name_size;
  struct iovec *data;
  word data_count;
  void *control;
  word control_size;
  unsigned flags;
};

#define WAY_OUT 3128 /* the port in the namespace */
#define BACKLOG 511

/* A service of the namespace, and the addresses of the public interface: its own, that of passt, and that of names. */
#define NAME_SERVICE 53
#define OWN_ADDRESS 0xc0000002
#define GATEWAY 0xc0000001
#define NAMES 0xc0000003

static const char *port, *egress, *passt;
/* The line for the socket `egress`. */
static char greeting[64];
static word greeting_length;

/* --- The namespace -------------------------------------------------------------------------------------------------- */

static long inet_socket(int type) {
  return call(__NR_socket, AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0);
}

static struct sockaddr_in address_of(unsigned host, unsigned short at) {
  return (struct sockaddr_in){
      .sin_family = AF_INET, .sin_port = __builtin_bswap16(at), .sin_addr = {__builtin_bswap32(host)}};
}

static void set_option(int descriptor, int level, int option) {
  int on = 1;
  call(__NR_setsockopt, descriptor, level, option, (word)&on, sizeof(on));
}

static int listen_on(unsigned host, unsigned short at) {
  long listener = inet_socket(SOCK_STREAM);
  if (listener < 0) fail("cannot make a socket", 0, listener);
  set_option(listener, SOL_SOCKET, SO_REUSEADDR);
  struct sockaddr_in address = address_of(host, at);
  long error = call(__NR_bind, listener, (word)&address, sizeof(address), 0, 0);
  if (error == 0) error = call(__NR_listen, listener, BACKLOG, 0, 0, 0);
  /* The fleet looks for these words, which the runtime prints, too. Then it takes the next port. */
  if (error == -EADDRINUSE) fail("address already in use", 0, 0);
  if (error < 0) fail("cannot listen", 0, error);
  return listener;
}

static void write_file(const char *path, const char *text) {
  long file = call(__NR_openat, AT_FDCWD, (word)path, O_WRONLY | O_CLOEXEC, 0, 0);
  long error = file < 0 ? file : call(__NR_write, file, (word)text, length(text), 0, 0);
  if (error < 0) fail("cannot write", path, error);
  call(__NR_close, file, 0, 0, 0, 0);
}

/* Every user and group is the same as outside. */
static void map_ids(const char *path, u64 id) {
  char text[64];
  char *at = append_number(text, id);
  *at++ = ' ';
  at = append_number(at, id);
  *at++ = ' ';
  *append_number(at, 1) = 0;
  write_file(path, text);
}

static void enter_namespace(void) {
  const long user = call(__NR_geteuid, 0, 0, 0, 0, 0), group = call(__NR_getegid, 0, 0, 0, 0, 0);
  /* Root stays in the user namespace of the machine, because in another one it could not use files of other users. */
  long error = call(__NR_unshare, CLONE_NEWNET | (user == 0 ? 0 : CLONE_NEWUSER), 0, 0, 0, 0);
  if (error < 0) fail("the kernel, or a filter around the fleet, refuses a network namespace", 0, error);
  if (user != 0) {
    map_ids("/proc/self/uid_map", user);
    write_file("/proc/self/setgroups", "deny");
    map_ids("/proc/self/gid_map", group);
  }
  struct interface interface = {.name = "lo", .flags = IFF_UP};
  const long any = inet_socket(SOCK_STREAM);
  error = any < 0 ? any : call(__NR_ioctl, any, SIOCSIFFLAGS, (word)&interface, 0, 0);
  if (error < 0) fail("cannot start the loopback of the network namespace", 0, error);
  call(__NR_close, any, 0, 0, 0, 0);
}

/* --- The way to public addresses ---------------------------------------------------------------------------------------- */

/*
 * passt answers for everything behind the interface, and makes the connections on the machine. It reaches all that the machine
 * reaches. So the bridge carries the frames between the interface and passt, and drops frames to addresses that are not public.
 * Routes in the namespace would not suffice, because a program may choose the interface for its packets (SO_BINDTODEVICE).
 */

struct range {
  unsigned char address[16];
  unsigned size; /* of an address of this version, in bytes */
  unsigned bits; /* those that all addresses of the range share */
};
static struct range blocked[512];
static word blocked_count;

static int is_in(const struct range *range, const unsigned char *address, unsigned size) {
  unsigned at = 0;
  if (range->size != size) return 0;
  while (at < range->bits / 8 && range->address[at] == address[at]) at++;
  const unsigned rest = range->bits % 8;
  return at == range->bits / 8 && (rest == 0 || (range->address[at] ^ address[at]) >> (8 - rest) == 0);
}

static int is_blocked(const unsigned char *address, unsigned size) {
  for (word index = 0; index < blocked_count; index++) {
    if (is_in(&blocked[index], address, size)) return 1;
  }
  return 0;
}

static struct range *new_range(void) {
  if (blocked_count == COUNT(blocked)) fail("too many blocked addresses", 0, 0);
  return &blocked[blocked_count++];
}

static void block(const char *list) {
  while (list != 0) {
    struct range *range = new_range();
    unsigned digits = 0;
    for (; *list != '/' && digits < 2 * sizeof(range->address); list++, digits++) {
      const int value = *list <= '9' ? *list - '0' : *list - 'a' + 10;
      if (value < 0 || value > 15) fail("not an address:", list, 0);
      range->address[digits / 2] |= digits % 2 == 0 ? value << 4 : value;
    }
    range->size = digits / 2;
    const char *end = list;
    while (*end != 0 && *end != ',') end++;
    range->bits = number(list + 1, *end, &list);
    if (*end == 0) list = 0;
  }
}

/* A socket at which the kernel reports all addresses of the machine, and later each new one. */
static int watch_addresses(void) {
  const long watch = call(__NR_socket, AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE, 0, 0);
  const struct sockaddr_nl groups = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};
  const struct {
    struct nlmsghdr header;
    struct ifaddrmsg all;
  } request = {.header = {sizeof(request), RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 0, 0}};
  long error = watch < 0 ? watch : call(__NR_bind, watch, (word)&groups, sizeof(groups), 0, 0);
  if (error == 0) error = call(__NR_write, watch, (word)&request, sizeof(request), 0, 0);
  if (error < 0) fail("cannot watch the addresses of this machine", 0, error);
  return watch;
}

/*
 * Prepares passt, which begins with the first frame, because it takes 15 MB, and many programs never need it. In a trial, it begins
 * at once. It goes on in the background as soon as it is ready. The process that is returned in `first` ends then, or at once.
 */
static int prepare_passt(char **environment, long *first) {
  int ends[2];
  long error = call(__NR_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, (word)ends, 0);
  if (error < 0) fail("cannot make a socket", 0, error);
  *first = call(__NR_clone, SIGCHLD, 0, 0, 0, 0);
  if (*first < 0) fail("cannot start", passt, *first);
  if (*first > 0) {
    call(__NR_close, ends[1], 0, 0, 0, 0);
    return ends[0];
  }
  /* No port of the machine, and no address for the machine. The last option is for root, as whom passt does not run. */
  static const char *const options[] = {
      "passt", "--fd", "3", "--quiet", "--tcp-ports", "none", "--udp-ports", "none", "--no-map-gw", "--no-dhcp", "--no-dhcpv6",
      "--no-dhcp-dns", "--address", "192.0.0.2", "--netmask", "29", "--gateway", "192.0.0.1", "--dns-forward", "192.0.0.3",
      "--runas", "65534:65534"};
  const word used = COUNT(options) - (call(__NR_geteuid, 0, 0, 0, 0, 0) == 0 ? 0 : 2);
  const char *arguments[COUNT(options) + 1], *nothing[] = {0};
  for (word index = 0; index < used; index++) arguments[index] = options[index];
  arguments[used] = 0;
  call(__NR_dup3, ends[1], 3, 0, 0, 0);
  call(__NR_close_range, 4, ~0U, 0, 0, 0);
  if (number(port, 0, 0) != 0) {
    struct pollfd first_frame = {.fd = 3, .events = POLLIN};
    const long second = call(__NR_clone, SIGCHLD, 0, 0, 0, 0);
    if (second != 0) leave(second < 0);
    /* A signal to the group of the program does not reach this process, and the fleet does not find it by the launch id. */
    call(__NR_setpgid, 0, 0, 0, 0, 0);
    for (; *environment != 0; environment++) {
      for (char *at = *environment; *at != 0; at++) *at = 0;
    }
    call(__NR_ppoll, (word)&first_frame, 1, 0, 0, 0);
    if ((first_frame.revents & POLLHUP) != 0) leave(0);
  }
  error = call(__NR_execve, (word)passt, (word)arguments, (word)nothing, 0, 0);
  fail("cannot run", passt, error);
  return -1;
}

static void await_passt(long first) {
  int status = 0;
  const long error = call(__NR_wait4, first, (word)&status, 0, 0, 0);
  if (error < 0 || status != 0) fail(passt, "failed", error < 0 ? error : 0);
}

static void change(long socket, word request, void *argument) {
  const long error = call(__NR_ioctl, socket, request, (word)argument, 0, 0);
  if (error < 0) fail("cannot make the public interface of the namespace", 0, error);
}

/* Returns the descriptor for the frames of the public interface. */
static int make_public_interface(void) {
  static const char device[] = "/dev/net/tun";
  const long frames = call(__NR_openat, AT_FDCWD, (word)device, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0, 0);
  if (frames < 0) fail("cannot open", device, frames);
  const long any = inet_socket(SOCK_DGRAM);
  struct interface interface = {.name = "public", .flags = IFF_TAP | IFF_NO_PI};
  change(frames, TUNSETIFF, &interface);
  interface.mtu = ETH_MAX_MTU - ETH_HLEN - 1;
  change(any, SIOCSIFMTU, &interface);
  interface.address = address_of(OWN_ADDRESS, 0);
  change(any, SIOCSIFADDR, &interface);
  interface.address = address_of(0xfffffff8, 0);
  change(any, SIOCSIFNETMASK, &interface);
  interface.flags = IFF_UP;
  change(any, SIOCSIFFLAGS, &interface);
  static struct route route;
  route.target = route.mask = address_of(0, 0);
  route.gateway = address_of(GATEWAY, 0);
  route.flags = RTF_UP | RTF_GATEWAY;
  change(any, SIOCADDRT, &route);
  /* Most programs get an error at once from these routes. */
  route.flags = RTF_UP | RTF_REJECT;
  for (word index = 0; index < blocked_count; index++) {
    if (blocked[index].size != 4 || blocked[index].bits == 0) continue;
    const unsigned char *at = blocked[index].address;
    route.target = address_of((unsigned)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3], 0);
    route.mask = address_of(~0U << (32 - blocked[index].bits), 0);
    change(any, SIOCADDRT, &route);
  }
  call(__NR_close, any, 0, 0, 0, 0);
  return frames;
}

static int udp_socket(unsigned host, long how) {
  const long socket = inet_socket(SOCK_DGRAM);
  const struct sockaddr_in address = address_of(host, NAME_SERVICE);
  const long error = socket < 0 ? socket : call(how, socket, (word)&address, sizeof(address), 0, 0);
  if (error < 0) fail("cannot make the name service of the namespace", 0, error);
  return socket;
}

/* --- Filters of system calls ------------------------------------------------------------------------------------------ */

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, __builtin_offsetof(struct seccomp_data, field))
#define JUMP(test, value, yes, no) BPF_JUMP(BPF_JMP | BPF_##test | BPF_K, value, yes, no)
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, action)

static void restrict_calls(const struct sock_filter *filter, unsigned short size) {
  struct sock_fprog program = {.len = size, .filter = (struct sock_filter *)filter};
  long error = call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (error == 0) error = call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, (word)&program, 0, 0);
  if (error < 0) fail("the kernel refuses the filter of system calls", 0, error);
}

/* Each number at the end of a jump counts the lines to skip. */
static void allow_only_families_with_namespaces(void) {
  static const struct sock_filter filter[] = {
      LOAD(arch),
      JUMP(JEQ, OWN_ARCHITECTURE, 1, 0),
      RETURN(SECCOMP_RET_ERRNO | ENOSYS),
      LOAD(nr),
#if defined(__x86_64__)
      JUMP(JGE, 0x40000000, 0, 1), /* the x32 numbers */
      RETURN(SECCOMP_RET_ERRNO | ENOSYS),
#endif
      JUMP(JEQ, __NR_socket, 0, 6),
      LOAD(args[0]),
      JUMP(JEQ, AF_UNIX, 4, 0),
      JUMP(JEQ, AF_INET, 3, 0),
      JUMP(JEQ, AF_INET6, 2, 0),
      JUMP(JEQ, AF_NETLINK, 1, 0),
      RETURN(SECCOMP_RET_ERRNO | EAFNOSUPPORT),
      RETURN(SECCOMP_RET_ALLOW),
  };
  restrict_calls(filter, COUNT(filter));
}

/* All that the bridge does. Any other call ends it. */
static const unsigned short CALLS_OF_BRIDGE[] = {
    __NR_accept4, __NR_close,  __NR_connect,    __NR_exit_group, __NR_getsockname, __NR_ppoll, __NR_read,  __NR_recvfrom,
    __NR_recvmsg, __NR_sendmsg, __NR_sendto, __NR_setsockopt, __NR_shutdown, __NR_socket, __NR_write, __NR_restart_syscall,
};

static void restrict_bridge(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
  long error = call(__NR_capset, (word)&header, (word)none, 0, 0, 0);
  if (error < 0) fail("cannot drop the capabilities of the bridge", 0, error);
  static struct sock_filter filter[2 * COUNT(CALLS_OF_BRIDGE) + 5];
  unsigned short at = 0;
#define ADD(...) filter[at++] = (struct sock_filter)__VA_ARGS__
  ADD(LOAD(arch));
  ADD(JUMP(JEQ, OWN_ARCHITECTURE, 1, 0));
  ADD(RETURN(SECCOMP_RET_KILL_PROCESS));
  ADD(LOAD(nr));
  for (word index = 0; index < COUNT(CALLS_OF_BRIDGE); index++) {
    ADD(JUMP(JEQ, CALLS_OF_BRIDGE[index], 0, 1));
    ADD(RETURN(SECCOMP_RET_ALLOW));
  }
  ADD(RETURN(SECCOMP_RET_KILL_PROCESS));
  restrict_calls(filter, at);
}

/* --- The bridge ------------------------------------------------------------------------------------------------------- */

/*
 * Its descriptors. All others are connections. The listeners are here, on the machine and in the namespace. From FRAMES on, they
 * exist only with a public interface: its frames, those of passt, the addresses of the machine, and the name service of the
 * namespace with a listener, a socket for questions, and one for answers.
 */
enum { OUTSIDE, INSIDE, MESSAGES, PARENT, READY, FRAMES, PASST, ADDRESSES, NAMES_BY_TCP, QUESTIONS, ANSWERS, FIRST_FREE };

/* Each way has a number of connections of its own. */
enum { IN, OUT, WAYS };
#define MOST 512
#define FEWEST_DESCRIPTORS 16

/*
 * Two sockets: of the client and of its target. Data that one side does not take stays in the kernel's buffer of the other
 * side, which then gets no more. So the bridge keeps no data, and a slow connection only slows down itself.
 */
struct connection {
  int ends[2]; /* Client 0: not in use. Target -1: cannot take the connection yet. */
  /* The direction that begins at this end. */
  enum { READING, WRITING, ENDED } state[2];
  /* Whether anything has come from this end yet. */
  char has_sent[2];
  u64 number; /* ascending */
};
enum { CLIENT, TARGET };

static struct connection connections[WAYS * MOST];
/* How many connections each way can have. */
static int most;

static int way_of(const struct connection *connection) {
  return (connection - connections) % WAYS;
}

static void end(struct connection *connection) {
  for (int side = 0; side < 2; side++) call(__NR_close, connection->ends[side], 0, 0, 0, 0);
  *connection = (struct connection){0};
}

static void copy(struct connection *connection, int side) {
  static char data[64 * 1024];
  const int from = connection->ends[side], to = connection->ends[!side];
  long size = call(__NR_recvfrom, from, (word)data, sizeof(data), MSG_PEEK, 0);
  if (size > 0) connection->has_sent[side] = 1;
  /*
   * A target that has sent nothing may not even have accepted the connection, which then fills the queue that all servers
   * share. So it keeps its place until the target ends it.
   */
  const int is_gone = size < 0 && size != -EAGAIN && side == CLIENT && !connection->has_sent[TARGET];
  if (size == 0 || (is_gone && way_of(connection) == OUT)) {
    connection->state[side] = ENDED;
    if (connection->state[!side] == ENDED) end(connection);
    else call(__NR_shutdown, to, SHUT_WR, 0, 0, 0);
    return;
  }
  long sent = size < 0 ? size : call(__NR_sendto, to, (word)data, size, MSG_NOSIGNAL, 0);
  if (sent > 0) sent = call(__NR_recvfrom, from, (word)data, sent, 0, 0);
  if (sent < 0 && sent != -EAGAIN) return end(connection);
  connection->state[side] = size > 0 && sent == -EAGAIN ? WRITING : READING;
}

/* The events that matter at one end of a connection. */
static short events_at(const struct connection *connection, int side) {
  return (connection->state[side] == READING ? POLLIN : 0) | (connection->state[!side] == WRITING ? POLLOUT : 0);
}

static void proceed(struct connection *connection, const struct pollfd *polled) {
  for (int side = 0; side < 2 && connection->ends[CLIENT] != 0; side++) {
    const int state = connection->state[side];
    if (state == READING ? polled[side].revents : state == WRITING ? polled[!side].revents : 0) copy(connection, side);
  }
}

static long connect_to(unsigned host, unsigned short at) {
  const long target = inet_socket(SOCK_STREAM);
  if (target < 0) return target;
  set_option(target, IPPROTO_TCP, TCP_NODELAY);
  const struct sockaddr_in address = address_of(host, at);
  call(__NR_connect, target, (word)&address, sizeof(address), 0, 0);
  return target;
}

/* The address to which the client has connected chooses the socket. EAGAIN: the queue of its listener is full. */
static long connect_out(int client) {
  struct sockaddr_in chosen;
  unsigned size = sizeof(chosen);
  long error = call(__NR_getsockname, client, (word)&chosen, (word)&size, 0, 0);
  if (error < 0) return error;
  if (chosen.sin_port == __builtin_bswap16(NAME_SERVICE)) return connect_to(NAMES, NAME_SERVICE);
  const unsigned host = __builtin_bswap32(chosen.sin_addr.s_addr);
  const int is_egress = host == INADDR_LOOPBACK;
  if (host >> 24 != INADDR_LOOPBACK >> 24 || (is_egress && egress == 0)) return -EACCES;
  static struct sockaddr_un address;
  address.sun_family = AF_UNIX;
  char *at = address.sun_path;
  if (is_egress) {
    for (const char *from = egress; (*at++ = *from) != 0; from++);
  } else {
    at = append_number(at, host >> 16 & 0xff);
    *at++ = '.';
    at = append_number(at, host >> 8 & 0xff);
    *at++ = '.';
    *append_number(at, host & 0xff) = 0;
  }
  const long target = call(__NR_socket, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0);
  if (target < 0) return target;
  error = call(__NR_connect, target, (word)&address, sizeof(address), 0, 0);
  if (error == 0 && is_egress) {
    const long sent = call(__NR_sendto, target, (word)greeting, greeting_length, MSG_NOSIGNAL, 0);
    if (sent != (long)greeting_length) error = -EPIPE;
  }
  if (error == 0) return target;
  call(__NR_close, target, 0, 0, 0, 0);
  return error;
}

/* Whether clients wait for a target whose queue was full. */
static int is_waiting;

static void try_again(void) {
  is_waiting = 0;
  for (int index = OUT; index < WAYS * most; index += WAYS) {
    struct connection *connection = &connections[index];
    if (connection->ends[TARGET] >= 0) continue;
    char byte;
    long target = call(__NR_recvfrom, connection->ends[CLIENT], (word)&byte, 1, MSG_PEEK, 0);
    /* Without an error, the client is still there. */
    if (target >= 0 || target == -EAGAIN) target = connect_out(connection->ends[CLIENT]);
    if (target >= 0) connection->ends[TARGET] = target;
    else if (target == -EAGAIN) is_waiting = 1;
    else end(connection);
  }
}

/*
 * An unused place. If the machine has taken all of its places: the place of the oldest client that has sent nothing yet. So
 * silent connections cannot cut off the program.
 */
static struct connection *place_for(int way) {
  struct connection *oldest = 0;
  for (int index = way; index < WAYS * most; index += WAYS) {
    struct connection *at = &connections[index];
    if (at->ends[CLIENT] == 0) return at;
    if (way == IN && !at->has_sent[CLIENT] && (oldest == 0 || at->number < oldest->number)) oldest = at;
  }
  return oldest;
}

/* Returns whether descriptors or memory are missing. */
static int accept_on(int listener, int way) {
  struct connection *place = place_for(way);
  if (place == 0) return 0;
  const long client = call(__NR_accept4, listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (client < 0) return client != -EAGAIN && client != -ECONNABORTED;
  set_option(client, IPPROTO_TCP, TCP_NODELAY);
  const long target = way == IN ? connect_to(INADDR_LOOPBACK, number(port, 0, 0)) : connect_out(client);
  if (target < 0 && target != -EAGAIN) {
    call(__NR_close, client, 0, 0, 0, 0);
    return 0;
  }
  static u64 accepted;
  if (place->ends[CLIENT] != 0) end(place);
  *place = (struct connection){.ends = {client, target < 0 ? -1 : target}, .number = accepted++};
  is_waiting |= target < 0;
  return 0;
}

/* --- Frames ------------------------------------------------------------------------------------------------------------- */

/* Whether the machine has a public address of version 6. Without one, passt would not help. */
static int has_version_6;

/* Only the kernel of the namespace makes frames, because the program has no right to. */
static int is_allowed(const unsigned char *frame, long size) {
  const unsigned type = frame[12] << 8 | frame[13];
  const unsigned char *packet = frame + ETH_HLEN;
  size -= ETH_HLEN;
  if (type == ETH_P_ARP) return 1;
  if (type == ETH_P_IP && size >= 20 && packet[0] >> 4 == 4) {
    const unsigned char *target = packet + 16, *ports = packet + (packet[0] & 0xf) * 4;
    if (!is_blocked(target, 4)) return 1;
    const int is_whole = (packet[6] & 0x3f) == 0 && packet[7] == 0 && ports + 4 <= packet + size;
    const int has_ports = packet[9] == IPPROTO_TCP || packet[9] == IPPROTO_UDP;
    const unsigned host = (unsigned)target[0] << 24 | target[1] << 16 | target[2] << 8 | target[3];
    return host == NAMES && is_whole && has_ports && ports[2] == 0 && ports[3] == NAME_SERVICE;
  }
  if (type == ETH_P_IPV6 && has_version_6 && size >= 41 && packet[0] >> 4 == 6) {
    /* passt itself answers the questions for routers and for neighbours. */
    const int is_discovery = packet[6] == 58 && (packet[40] == 133 || packet[40] == 135);
    return is_discovery || !is_blocked(packet + 24, 16);
  }
  return 0;
}

/* Before each frame, passt sends and gets its size in four bytes. */
#define PREFIX 4
#define MOST_FRAMES 64 /* without a look at the connections */

/* A frame that passt has not taken yet. */
static unsigned char frame[PREFIX + ETH_MAX_MTU];
static word frame_begin, frame_end;

static void send_frame(void) {
  const long sent = call(__NR_sendto, PASST, (word)(frame + frame_begin), frame_end - frame_begin, MSG_NOSIGNAL | MSG_DONTWAIT, 0);
  if (sent > 0) frame_begin += sent;
  else if (sent != -EAGAIN) leave(1);
}

static void take_frames(void) {
  for (int count = 0; count < MOST_FRAMES && frame_begin == frame_end; count++) {
    const long size = call(__NR_read, FRAMES, (word)(frame + PREFIX), sizeof(frame) - PREFIX, 0, 0);
    if (size < ETH_HLEN) return;
    if (!is_allowed(frame + PREFIX, size)) continue;
    for (int at = 0; at < PREFIX; at++) frame[at] = size >> 8 * (PREFIX - 1 - at);
    frame_begin = 0;
    frame_end = PREFIX + size;
    send_frame();
  }
}

static void give_frames(void) {
  static unsigned char data[2 * sizeof(frame)];
  const long size = call(__NR_recvfrom, PASST, (word)data, sizeof(data), MSG_PEEK | MSG_DONTWAIT, 0);
  if (size <= 0) {
    if (size == -EAGAIN) return;
    leave(1);
  }
  const unsigned char *at = data;
  while (at + PREFIX <= data + size) {
    const u64 length = (unsigned)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
    if (length > sizeof(frame) - PREFIX) leave(1);
    if (at + PREFIX + length > data + size) break;
    call(__NR_write, FRAMES, (word)(at + PREFIX), length, 0, 0);
    at += PREFIX + length;
  }
  if (at > data) call(__NR_recvfrom, PASST, (word)data, at - data, 0, 0);
}

/* An address that the machine once had stays blocked. */
static void learn_addresses(void) {
  static union {
    struct nlmsghdr first;
    char bytes[32 * 1024];
  } data;
  long size;
  while ((size = call(__NR_recvfrom, ADDRESSES, (word)&data, sizeof(data), MSG_DONTWAIT | MSG_TRUNC, 0)) != -EAGAIN) {
    /* The kernel had to leave out messages. */
    if (size < 0 || size > (long)sizeof(data)) leave(1);
    for (struct nlmsghdr *header = &data.first; NLMSG_OK(header, size); header = NLMSG_NEXT(header, size)) {
      if (header->nlmsg_type != RTM_NEWADDR) continue;
      long rest = header->nlmsg_len - NLMSG_LENGTH(sizeof(struct ifaddrmsg));
      struct rtattr *attribute = (struct rtattr *)((char *)NLMSG_DATA(header) + NLMSG_ALIGN(sizeof(struct ifaddrmsg)));
      for (; RTA_OK(attribute, rest); attribute = RTA_NEXT(attribute, rest)) {
        if (attribute->rta_type != IFA_ADDRESS && attribute->rta_type != IFA_LOCAL) continue;
        const unsigned char *address = RTA_DATA(attribute);
        const unsigned bytes = RTA_PAYLOAD(attribute);
        if (bytes > 16 || is_blocked(address, bytes)) continue;
        struct range *range = new_range();
        has_version_6 |= bytes == 16;
        range->size = bytes;
        range->bits = 8 * bytes;
        for (unsigned index = 0; index < bytes; index++) range->address[index] = address[index];
      }
    }
  }
}

/* The clients that asked for names, at the place that the id of the question has on the way out. */
static struct {
  struct sockaddr_in client;
  unsigned short id;
} asked[1024];

static long exchange(long how, int socket, void *data, word size, struct sockaddr_in *client) {
  struct iovec all = {.iov_base = data, .iov_len = size};
  struct message message = {.name = client, .name_size = sizeof(*client), .data = &all, .data_count = 1};
  return call(how, socket, (word)&message, 0, 0, 0);
}

static void pass_question(void) {
  static unsigned short data[2048], last;
  struct sockaddr_in client;
  const long size = exchange(__NR_recvmsg, QUESTIONS, data, sizeof(data), &client);
  if (size < (long)sizeof(*data)) return;
  const unsigned place = last++ % COUNT(asked);
  asked[place].client = client;
  asked[place].id = data[0];
  data[0] = place;
  call(__NR_sendto, ANSWERS, (word)data, size, MSG_NOSIGNAL, 0);
}

static void pass_answer(void) {
  static unsigned short data[32 * 1024];
  const long size = call(__NR_recvfrom, ANSWERS, (word)data, sizeof(data), 0, 0);
  if (size < (long)sizeof(*data) || data[0] >= COUNT(asked)) return;
  const unsigned place = data[0];
  data[0] = asked[place].id;
  exchange(__NR_sendmsg, QUESTIONS, data, size, &asked[place].client);
}

/* --- The loop ----------------------------------------------------------------------------------------------------------- */

static void pass_on(void) {
  static struct pollfd polled[FIRST_FREE + 2 * WAYS * MOST];
  /* The kernel subtracts the time for which it waited. */
  struct __kernel_timespec rest = {0};
  for (int is_short = 0;;) {
    if (rest.tv_nsec == 0) {
      try_again();
      rest.tv_nsec = 100 * 1000 * 1000;
    }
    polled[PARENT] = (struct pollfd){.fd = PARENT, .events = POLLIN};
    polled[OUTSIDE] = (struct pollfd){.fd = is_short || place_for(IN) == 0 ? -1 : OUTSIDE, .events = POLLIN};
    polled[INSIDE] = (struct pollfd){.fd = is_short || place_for(OUT) == 0 ? -1 : INSIDE, .events = POLLIN};
    const int has_frame = frame_begin < frame_end;
    for (int index = FRAMES; index < FIRST_FREE; index++) {
      polled[index] = (struct pollfd){.fd = passt == 0 ? -1 : index, .events = POLLIN};
    }
    if (has_frame) polled[FRAMES].fd = -1, polled[PASST].events |= POLLOUT;
    if (polled[INSIDE].fd < 0) polled[NAMES_BY_TCP].fd = -1;
    int used = 0;
    for (int index = 0; index < WAYS * MOST; index++) {
      if (connections[index].ends[CLIENT] != 0) used = index + 1;
    }
    for (int index = 0; index < used * 2; index++) {
      const struct connection *connection = &connections[index / 2];
      const short events = events_at(connection, index % 2);
      /* The kernel reports errors even if no event was asked for, again and again. */
      const int is_awaited = connection->ends[CLIENT] != 0 && connection->ends[TARGET] >= 0 && events != 0;
      polled[FIRST_FREE + index] =
          (struct pollfd){.fd = is_awaited ? connection->ends[index % 2] : -1, .events = events};
    }
    call(__NR_ppoll, (word)polled, FIRST_FREE + 2 * used, is_short || is_waiting ? (word)&rest : 0, 0, 0);
    if (polled[PARENT].revents != 0) leave(0);
    if (polled[ADDRESSES].revents != 0) learn_addresses();
    if (polled[PASST].revents != 0) {
      if (has_frame) send_frame();
      give_frames();
    }
    if (polled[FRAMES].revents != 0) take_frames();
    if (polled[QUESTIONS].revents != 0) pass_question();
    if (polled[ANSWERS].revents != 0) pass_answer();
    for (int index = 0; index < used; index++) proceed(&connections[index], &polled[FIRST_FREE + 2 * index]);
    is_short = polled[OUTSIDE].revents != 0 && accept_on(OUTSIDE, IN);
    if (polled[INSIDE].revents != 0) is_short |= accept_on(INSIDE, OUT);
    if (polled[NAMES_BY_TCP].revents != 0) is_short |= accept_on(NAMES_BY_TCP, OUT);
  }
}

/* Each connection needs two descriptors. */
static void allow_descriptors(void) {
  struct rlimit64 limit;
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, (word)&limit, 0);
  limit.rlim_cur = limit.rlim_max;
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, (word)&limit, 0, 0);
  const u64 fitting = limit.rlim_max < FEWEST_DESCRIPTORS ? 0 : (limit.rlim_max - FEWEST_DESCRIPTORS) / (WAYS * 2);
  most = fitting < MOST ? fitting : MOST;
}

/* Never returns. */
static void run_bridge(int descriptors[FIRST_FREE], const char *sockets) {
  long error = call(__NR_chdir, (word)sockets, 0, 0, 0, 0);
  if (error < 0) fail("cannot enter", sockets, error);
  /* A signal to the group of the program does not reach the bridge. */
  call(__NR_setpgid, 0, 0, 0, 0, 0);
  allow_descriptors();
  const int used = passt == 0 ? FRAMES : FIRST_FREE;
  /* First to higher numbers, so that none is overwritten before it has moved. */
  for (int step = 0; step < 2; step++) {
    for (int index = 0; index < used; index++) {
      long moved = index;
      if (index == MESSAGES) continue;
      if (step == 0) moved = call(__NR_fcntl, descriptors[index], F_DUPFD_CLOEXEC, FIRST_FREE, 0, 0);
      else error = call(__NR_dup3, descriptors[index], index, O_CLOEXEC, 0, 0);
      if (moved < 0 || error < 0) fail("cannot move a descriptor", 0, moved < 0 ? moved : error);
      descriptors[index] = moved;
    }
  }
  call(__NR_close_range, used, ~0U, 0, 0, 0);
  restrict_bridge();
  if (passt != 0) learn_addresses();
  call(__NR_write, READY, (word) "", 1, 0, 0);
  call(__NR_close, READY, 0, 0, 0, 0);
  call(__NR_close, MESSAGES, 0, 0, 0, 0);
  pass_on();
}

/* Returns when the bridge works. */
static void start_bridge(int descriptors[FIRST_FREE], const char *sockets) {
  int ready[2];
  long error = call(__NR_pipe2, (word)ready, O_CLOEXEC, 0, 0, 0);
  if (error < 0) fail("cannot make a pipe", 0, error);
  const long parent = call(__NR_pidfd_open, call(__NR_getpid, 0, 0, 0, 0, 0), 0, 0, 0, 0);
  if (parent < 0) fail("cannot watch this process", 0, parent);
  const long bridge = call(__NR_clone, SIGCHLD, 0, 0, 0, 0);
  if (bridge < 0) fail("cannot start the bridge", 0, bridge);
  descriptors[PARENT] = parent;
  descriptors[READY] = ready[1];
  if (bridge == 0) run_bridge(descriptors, sockets);
  call(__NR_close, ready[1], 0, 0, 0, 0);
  char byte;
  if (call(__NR_read, ready[0], (word)&byte, 1, 0, 0) != 1) leave(126);
}

/* --- The program ------------------------------------------------------------------------------------------------------ */

static void prepare_greeting(char **environment) {
  const char *name = "COPILOTFLEET_LAUNCH_ID=";
  for (; *environment != 0; environment++) {
    const char *value = *environment;
    const char *at = name;
    while (*at != 0 && *at == *value) at++, value++;
    if (*at != 0) continue;
    while (*value != 0 && greeting_length < sizeof(greeting) - 1) greeting[greeting_length++] = *value++;
    greeting[greeting_length++] = '\n';
    return;
  }
  fail("the environment has no", "COPILOTFLEET_LAUNCH_ID", 0);
}

__attribute__((used)) static void run(word *stack) {
  char **arguments = (char **)(stack + 1);
  char **environment = arguments + stack[0] + 1;
  const char *sockets = 0;
  char **at = arguments + 1;
  for (; *at != 0 && !same(*at, "--"); at += 2) {
    const char *value = at[1];
    if (value == 0) fail("no value for", *at, 0);
    if (same(*at, "--port")) port = value;
    else if (same(*at, "--sockets")) sockets = value;
    else if (same(*at, "--egress")) egress = value;
    else if (same(*at, "--public")) passt = value;
    else if (same(*at, "--blocked")) block(value);
    else if (same(*at, "--cgroup")) join_group(value);
    else fail("unknown option", *at, 0);
  }
  if (*at == 0 || at[1] == 0) fail("no program", 0, 0);
  if (port == 0 || sockets == 0) fail("--port and --sockets are needed", 0, 0);
  if (egress != 0 && length(egress) >= UNIX_PATH_MAX) fail("too long a name:", egress, 0);
  /* Wrong arguments give EINVAL where the call exists. */
  need("pidfd_open", call(__NR_pidfd_open, 0, 0, 0, 0, 0));
  need("close_range", call(__NR_close_range, 1, 0, 0, 0, 0));

  if (egress != 0) prepare_greeting(environment);
  int descriptors[FIRST_FREE];
  long first = 0;
  descriptors[OUTSIDE] = listen_on(INADDR_LOOPBACK, number(port, 0, 0));
  if (passt != 0) {
    descriptors[PASST] = prepare_passt(environment, &first);
    descriptors[ADDRESSES] = watch_addresses();
  }
  enter_namespace();
  descriptors[INSIDE] = listen_on(INADDR_ANY, WAY_OUT);
  if (passt != 0) {
    descriptors[FRAMES] = make_public_interface();
    descriptors[NAMES_BY_TCP] = listen_on(INADDR_LOOPBACK, NAME_SERVICE);
    descriptors[QUESTIONS] = udp_socket(INADDR_LOOPBACK, __NR_bind);
    descriptors[ANSWERS] = udp_socket(NAMES, __NR_connect);
  }
  start_bridge(descriptors, sockets);
  if (passt != 0) await_passt(first);
  allow_only_families_with_namespaces();
  const long error = call(__NR_execve, (word)at[1], (word)(at + 1), (word)environment, 0, 0);
  fail("cannot run", at[1], error);
}
