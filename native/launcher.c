/*
 * Puts this process into a sandbox and then runs a program in its place. The PID stays the same.
 *
 *   copilotfleet-sandbox [OPTION VALUE]... -- PROGRAM [ARGUMENT]...   runs PROGRAM, an absolute path
 *   copilotfleet-sandbox [OPTION VALUE]... --try                     sets up the same sandbox, prints what it holds, ends
 *
 *   --read PATH       the program may read and execute what is at PATH or below it
 *   --write PATH      the program may also change it, but make no devices
 *   --device PATH     the program may read, write and control the device at PATH
 *   --connect PORT    the program may connect to this TCP port, and to no port that is not listed
 *   --bind PORT       the program may listen on this TCP port, and on no port that is not listed
 *   --limit N=VALUE   the resource limit with the kernel's number N, soft and hard, unless a lower one holds already
 *   --cgroup FOLDER   the control group in which the program runs
 *   --allow sockets   the program may make Unix sockets
 *   --allow owners    the program may change owners and extended attributes, and make folders that pass on their group
 *
 * Landlock restricts none of these. So the caller allows them only if the program sees no files but its own, or if the
 * operator asks for it: a Unix socket may lead to a program outside of the sandbox, and every file of the account has an owner
 * and attributes.
 *
 * A PATH has no links in it; one that has them is refused, because somebody may have put the link there after the fleet had
 * looked. A PATH that does not exist is left out. Everything else that fails ends the launcher with code 126 and a message.
 *
 * It needs no C library, so that one small static program runs on every distribution. native/build.sh makes it.
 */
#include <asm/unistd.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
#include <linux/time_types.h>

#define NAME "copilotfleet-sandbox"
#include "program.h"

/* --- Landlock ----------------------------------------------------------------------------------------------------- */

/* From kernel 6.10 on. Older headers do not know the scopes (ABI 6). */
struct ruleset {
  u64 handled_access_fs, handled_access_net, scoped;
};
#define SCOPE_ABSTRACT_SOCKET (1ULL << 0)
#define SCOPE_SIGNAL (1ULL << 1)

#define READ (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
/* What a rule may allow for a file that is not a folder. */
#define OF_FILES                                                                                                     \
  (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE |                       \
   LANDLOCK_ACCESS_FS_TRUNCATE | LANDLOCK_ACCESS_FS_IOCTL_DEV)
#define DEVICE (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR | \
                LANDLOCK_ACCESS_FS_TRUNCATE | LANDLOCK_ACCESS_FS_IOCTL_DEV)

/* All accesses to files that the kernel of an ABI can restrict. */
static u64 files_of(long abi) {
  u64 all = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;
  if (abi >= 2) all |= LANDLOCK_ACCESS_FS_REFER;
  if (abi >= 3) all |= LANDLOCK_ACCESS_FS_TRUNCATE;
  if (abi >= 5) all |= LANDLOCK_ACCESS_FS_IOCTL_DEV;
  return all;
}

static void allow_path(int ruleset, const char *path, u64 access) {
  struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
  long descriptor = call(__NR_openat2, AT_FDCWD, (word)path, (word)&how, sizeof(how), 0);
  if (descriptor == -ENOENT || descriptor == -ENOTDIR || descriptor == -EACCES) return;
  if (descriptor < 0) fail("cannot open", path, descriptor);
  struct statx seen;
  long error = call(__NR_statx, descriptor, (word) "", AT_EMPTY_PATH, STATX_TYPE, (word)&seen);
  if (error < 0) fail("cannot look at", path, error);
  if ((seen.stx_mode & S_IFMT) != S_IFDIR) access &= OF_FILES;
  struct landlock_path_beneath_attr rule = {.allowed_access = access, .parent_fd = descriptor};
  error = call(__NR_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, (word)&rule, 0, 0);
  if (error < 0) fail("Landlock refuses a rule for", path, error);
  call(__NR_close, descriptor, 0, 0, 0, 0);
}

static void allow_port(int ruleset, const char *text, u64 access) {
  struct landlock_net_port_attr rule = {.allowed_access = access, .port = number(text, 0, 0)};
  long error = call(__NR_landlock_add_rule, ruleset, LANDLOCK_RULE_NET_PORT, (word)&rule, 0, 0);
  if (error < 0) fail("Landlock refuses a rule for port", text, error);
}

/* --- System calls that the program may not make -------------------------------------------------------------------- */

/*
 * They reach the kernel or the whole machine, and no tool of an agent needs them: modules, mounts, the clock, keys, tracing
 * of the kernel, raw access to hardware, and io_uring, whose operations no filter sees.
 */
static const unsigned short FORBIDDEN[] = {
    __NR_acct, __NR_add_key, __NR_adjtimex, __NR_bpf, __NR_clock_adjtime, __NR_clock_settime, __NR_delete_module,
    __NR_fanotify_init, __NR_finit_module, __NR_fsconfig, __NR_fsmount, __NR_fsopen, __NR_fspick, __NR_init_module,
    __NR_io_uring_enter, __NR_io_uring_register, __NR_io_uring_setup, __NR_kexec_file_load, __NR_kexec_load, __NR_keyctl,
    __NR_lookup_dcookie, __NR_mount, __NR_mount_setattr, __NR_move_mount, __NR_name_to_handle_at, __NR_nfsservctl,
    __NR_open_by_handle_at, __NR_open_tree, __NR_perf_event_open, __NR_personality, __NR_pivot_root, __NR_quotactl,
    __NR_quotactl_fd, __NR_reboot, __NR_request_key, __NR_setdomainname, __NR_sethostname, __NR_setns, __NR_settimeofday,
    __NR_swapoff, __NR_swapon, __NR_syslog, __NR_umount2, __NR_unshare, __NR_userfaultfd, __NR_vhangup,
#if defined(__x86_64__)
    __NR_ioperm, __NR_iopl, __NR_modify_ldt,
#endif
};
static const unsigned short OF_OWNERS[] = {
    __NR_fchown, __NR_fchownat,
#if defined(__x86_64__)
    __NR_chown, __NR_lchown,
#endif
};
/* Extended attributes contain access lists and capabilities. Linux 6.13 has the last two calls. */
static const unsigned short OF_ATTRIBUTES[] = {
    __NR_fremovexattr, __NR_fsetxattr, __NR_lremovexattr, __NR_lsetxattr, __NR_removexattr, __NR_setxattr,
    463 /* setxattrat */, 466 /* removexattrat */,
};

#define NO_FLAGS 0xff
#define SET_USER 04000
#define SET_GROUP 02000
/*
 * Calls with the mode of a file. With SET_USER or SET_GROUP, a program runs with the rights of the fleet's account, whoever
 * starts it. `mode` is the argument with the mode. It counts only if the argument `flags` creates a file. `mkdir` is
 * missing here, because the kernel ignores both bits there.
 */
static const struct {
  unsigned short number;
  unsigned char mode, flags;
} WITH_MODE[] = {
    {__NR_fchmod, 1, NO_FLAGS},  {__NR_fchmodat, 2, NO_FLAGS}, {__NR_fchmodat2, 2, NO_FLAGS},
    {__NR_mknodat, 2, NO_FLAGS}, {__NR_openat, 3, 2},
#if defined(__x86_64__)
    {__NR_chmod, 1, NO_FLAGS},   {__NR_creat, 1, NO_FLAGS},    {__NR_mknod, 1, NO_FLAGS},
    {__NR_open, 2, 1},
#endif
};
#define CREATING (O_CREAT | __O_TMPFILE)

#define NO_ACCOUNT 0xff
/*
 * Calls that may only change the calling process. The limits of another process would be a way to kill it, and its
 * priority a way to slow it down. `argument` is the argument with the PID, where 0 means the caller. If the first
 * argument is `account`, the call changes all processes of the account.
 */
static const struct {
  unsigned short number;
  unsigned char argument, account;
} OWN_ONLY[] = {
    {__NR_prlimit64, 0, NO_ACCOUNT},         {__NR_sched_setaffinity, 0, NO_ACCOUNT}, {__NR_sched_setattr, 0, NO_ACCOUNT},
    {__NR_sched_setparam, 0, NO_ACCOUNT},    {__NR_sched_setscheduler, 0, NO_ACCOUNT},
    {__NR_setpriority, 1, 2 /* PRIO_USER */}, {__NR_ioprio_set, 1, 3 /* IOPRIO_WHO_USER */},
};
#define NAMESPACES \
  (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

/* The families and types of sockets, as in <sys/socket.h>. */
#define UNIX 1
#define DATAGRAM_OR_RAW 2 /* a bit that streams (1) and sequences of packets (5) do not have */

static struct sock_filter program[(COUNT(FORBIDDEN) + COUNT(OF_OWNERS) + COUNT(OF_ATTRIBUTES)) * 2 +
                                  (COUNT(WITH_MODE) + COUNT(OWN_ONLY)) * 7 + 40];

static void forbid_system_calls(int allows_sockets, int allows_owners) {
  unsigned short at = 0;
#define ADD(...) program[at++] = (struct sock_filter)__VA_ARGS__
#define LOAD(field) ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, __builtin_offsetof(struct seccomp_data, field)))
/* Skips `yes` instructions if the loaded word passes the test, and `no` instructions otherwise. */
#define SKIP(test, value, yes, no) ADD(BPF_JUMP(BPF_JMP | test | BPF_K, value, yes, no))
#define RETURN(what) ADD(BPF_STMT(BPF_RET | BPF_K, what))
#define REFUSE RETURN(SECCOMP_RET_ERRNO | EPERM)
#define UNKNOWN RETURN(SECCOMP_RET_ERRNO | ENOSYS)
/* Needs the number of the call as the loaded word. */
#define REFUSE_EACH(calls, error)                 \
  for (word index = 0; index < COUNT(calls); index++) { \
    SKIP(BPF_JEQ, (calls)[index], 0, 1);          \
    RETURN(SECCOMP_RET_ERRNO | (error));          \
  }
/* Refuses a call if its argument passes the test. */
#define REFUSE_IF(call, argument, test, value) \
  LOAD(nr);                                    \
  SKIP(BPF_JEQ, call, 0, 3);                   \
  LOAD(args[argument]);                        \
  SKIP(test, value, 0, 1);                     \
  REFUSE
  /* Another architecture has other numbers, so the list below would not hold. */
  LOAD(arch);
  SKIP(BPF_JEQ, OWN_ARCHITECTURE, 1, 0);
  UNKNOWN;
  LOAD(nr);
#if defined(__x86_64__)
  SKIP(BPF_JGE, 0x40000000, 0, 1); /* the x32 numbers */
  UNKNOWN;
#endif
  REFUSE_EACH(FORBIDDEN, EPERM);
  if (!allows_owners) {
    REFUSE_EACH(OF_OWNERS, EPERM);
    /* Tools such as sed accept that a file system has no attributes, but print a warning if they get EPERM. */
    REFUSE_EACH(OF_ATTRIBUTES, EOPNOTSUPP);
  }
  /*
   * clone3 has its flags in memory, and openat2 its mode. A filter cannot read them. Without these calls, programs use
   * clone and openat.
   */
  SKIP(BPF_JEQ, __NR_clone3, 1, 0);
  SKIP(BPF_JEQ, __NR_openat2, 0, 1);
  UNKNOWN;
  REFUSE_IF(__NR_clone, 0, BPF_JSET, NAMESPACES);
  /* Folders of teams have SET_GROUP, and tools copy it. The root of a fleet could give a program any group. */
  const int keeps_group = allows_owners && call(__NR_geteuid, 0, 0, 0, 0, 0) != 0;
  for (word index = 0; index < COUNT(WITH_MODE); index++) {
    const int has_flags = WITH_MODE[index].flags != NO_FLAGS;
    LOAD(nr);
    SKIP(BPF_JEQ, WITH_MODE[index].number, 0, has_flags ? 5 : 3);
    if (has_flags) {
      LOAD(args[WITH_MODE[index].flags]);
      SKIP(BPF_JSET, CREATING, 0, 3);
    }
    LOAD(args[WITH_MODE[index].mode]);
    SKIP(BPF_JSET, keeps_group ? SET_USER : SET_USER | SET_GROUP, 0, 1);
    REFUSE;
  }
  if (!allows_sockets) {
    REFUSE_IF(__NR_socket, 0, BPF_JEQ, UNIX);
    /* One of two connected sockets that send datagrams may also send them elsewhere. */
    REFUSE_IF(__NR_socketpair, 1, BPF_JSET, DATAGRAM_OR_RAW);
  }
  /* The fleet finds the processes of a launch by this limit, which the kernel itself ignores. */
  REFUSE_IF(__NR_setrlimit, 0, BPF_JEQ, RLIMIT_LOCKS);
  LOAD(nr);
  SKIP(BPF_JEQ, __NR_prlimit64, 0, 7);
  LOAD(args[1]);
  SKIP(BPF_JEQ, RLIMIT_LOCKS, 0, 5);
  LOAD(args[2]); /* the pointer to the new limit, which is 0 in a call that only reads */
  SKIP(BPF_JEQ, 0, 0, 2);
  ADD(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, __builtin_offsetof(struct seccomp_data, args[2]) + 4));
  SKIP(BPF_JEQ, 0, 1, 0);
  REFUSE;
  for (word index = 0; index < COUNT(OWN_ONLY); index++) {
    LOAD(nr);
    SKIP(BPF_JEQ, OWN_ONLY[index].number, 0, 5);
    LOAD(args[OWN_ONLY[index].argument]);
    SKIP(BPF_JEQ, 0, 0, 2);
    LOAD(args[0]);
    SKIP(BPF_JEQ, OWN_ONLY[index].account, 0, 1);
    REFUSE;
  }
  RETURN(SECCOMP_RET_ALLOW);
  struct sock_fprog filter = {.len = at, .filter = program};
  long error = call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, (word)&filter, 0, 0);
  if (error < 0) fail("the kernel refuses the filter of system calls", 0, error);
}

/* --- Privileges ---------------------------------------------------------------------------------------------------- */

/* A root that runs servers keeps only what it needs to work with its own files. */
static const char KEPT[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID};

/* Returns whether a root is left with more, because it may not drop capabilities. */
static int drop_capabilities(void) {
  int is_left = 0;
  for (int capability = 0; call(__NR_prctl, PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
    int keep = 0;
    for (word index = 0; index < COUNT(KEPT); index++) keep |= KEPT[index] == capability;
    if (keep || call(__NR_prctl, PR_CAPBSET_READ, capability, 0, 0, 0) == 0) continue;
    /* Fails with EPERM for an ordinary user, who gets no capability from a program either, because of no_new_privs. */
    is_left |= call(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0) < 0;
  }
  call(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  return is_left && call(__NR_geteuid, 0, 0, 0, 0, 0) == 0;
}

/* --- Limits -------------------------------------------------------------------------------------------------------- */

static void set_limit(const char *text) {
  const char *rest;
  word resource = number(text, '=', &rest);
  word most = number(rest, 0, 0);
  struct rlimit64 limit = {most, most};
  long error = call(__NR_prlimit64, 0, resource, (word)&limit, 0, 0);
  /* EPERM: a lower limit holds, and this process may not raise it. */
  if (error < 0 && error != -EPERM) fail("the kernel refuses the limit", text, error);
}

/* --- The launcher -------------------------------------------------------------------------------------------------- */

__attribute__((used)) static void run(word *stack) {
  char **arguments = (char **)(stack + 1);
  char **environment = arguments + stack[0] + 1;
  long abi = call(__NR_landlock_create_ruleset, 0, 0, LANDLOCK_CREATE_RULESET_VERSION, 0, 0);
  if (abi < 1) fail("this kernel has no Landlock", 0, abi);
  /* Wrong arguments give EINVAL where the call exists. */
  need("openat2", call(__NR_openat2, AT_FDCWD, 0, 0, 0, 0));
  need("close_range", call(__NR_close_range, 1, 0, 0, 0, 0));

  int connects = 0, binds = 0, allows_sockets = 0, allows_owners = 0;
  char **at = arguments + 1;
  for (; *at != 0 && !same(*at, "--") && !same(*at, "--try"); at += 2) {
    if (at[1] == 0) fail("no value for", *at, 0);
    connects |= same(*at, "--connect");
    binds |= same(*at, "--bind");
  }
  if (*at == 0 || (same(*at, "--") && at[1] == 0)) fail("no program", 0, 0);

  struct ruleset handled = {.handled_access_fs = files_of(abi)};
  if (abi >= 4) {
    if (connects) handled.handled_access_net |= LANDLOCK_ACCESS_NET_CONNECT_TCP;
    if (binds) handled.handled_access_net |= LANDLOCK_ACCESS_NET_BIND_TCP;
  }
  if (abi >= 6) handled.scoped = SCOPE_ABSTRACT_SOCKET | SCOPE_SIGNAL;
  word size = abi >= 6 ? sizeof(handled) : abi >= 4 ? sizeof(u64) * 2 : sizeof(u64);
  long ruleset = call(__NR_landlock_create_ruleset, (word)&handled, size, 0, 0, 0);
  if (ruleset < 0) fail("Landlock refuses the rules", 0, ruleset);

  for (char **option = arguments + 1; option < at; option += 2) {
    const char *value = option[1];
    if (same(*option, "--read")) allow_path(ruleset, value, READ);
    else if (same(*option, "--write"))
      allow_path(ruleset, value, handled.handled_access_fs & ~(LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK));
    else if (same(*option, "--device")) allow_path(ruleset, value, DEVICE & handled.handled_access_fs);
    else if (same(*option, "--connect")) {
      if (abi >= 4) allow_port(ruleset, value, LANDLOCK_ACCESS_NET_CONNECT_TCP);
    } else if (same(*option, "--bind")) {
      if (abi >= 4) allow_port(ruleset, value, LANDLOCK_ACCESS_NET_BIND_TCP);
    } else if (same(*option, "--limit")) set_limit(value);
    else if (same(*option, "--cgroup")) join_group(value);
    else if (same(*option, "--allow") && same(value, "sockets")) allows_sockets = 1;
    else if (same(*option, "--allow") && same(value, "owners")) allows_owners = 1;
    else fail("unknown option", *option, 0);
  }

  int is_privileged = drop_capabilities();
  long error = call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (error < 0) fail("the kernel refuses no_new_privs", 0, error);
  error = call(__NR_landlock_restrict_self, ruleset, 0, 0, 0, 0);
  if (error < 0) fail("Landlock refuses to restrict this process", 0, error);
  forbid_system_calls(allows_sockets, allows_owners);

  if (same(*at, "--try")) {
    print(1, "landlock ");
    print_number(1, abi);
    print(1, is_privileged ? " privileged\n" : "\n");
    leave(0);
  }
  /* The program gets only standard input, output and error. Other descriptors of the caller may be open by mistake. */
  error = call(__NR_close_range, 3, ~0U, 0, 0, 0);
  if (error < 0) fail("the kernel refuses to close descriptors", 0, error);
  error = call(__NR_execve, (word)at[1], (word)(at + 1), (word)environment, 0, 0);
  fail("cannot run", at[1], error);
}
