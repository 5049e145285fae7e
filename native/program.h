/*
 * What the programs of this folder share: system calls without a C library, messages, numbers, and control groups. A program
 * defines NAME for its messages, and begins in `run`.
 */
#include <asm/unistd.h>
#include <linux/audit.h>
#include <linux/errno.h>
#include <linux/fcntl.h>

typedef unsigned long word;
typedef unsigned long long u64;

#define COUNT(list) (sizeof(list) / sizeof(*(list)))

/* --- System calls ------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define OWN_ARCHITECTURE AUDIT_ARCH_X86_64
__asm__(".globl _start\n_start: xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call run\n hlt\n");

static long call(long number, word a, word b, word c, word d, word e) {
  long result;
  register word r10 __asm__("r10") = d;
  register word r8 __asm__("r8") = e;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
#define OWN_ARCHITECTURE AUDIT_ARCH_AARCH64
__asm__(".globl _start\n_start: mov x29,#0\n mov x30,#0\n mov x0,sp\n bl run\n brk #0\n");

static long call(long number, word a, word b, word c, word d, word e) {
  register word x8 __asm__("x8") = number;
  register word x0 __asm__("x0") = a;
  register word x1 __asm__("x1") = b;
  register word x2 __asm__("x2") = c;
  register word x3 __asm__("x3") = d;
  register word x4 __asm__("x4") = e;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  return x0;
}
#else
#error "The launcher supports x86-64 and arm64."
#endif

/* --- Messages ----------------------------------------------------------------------------------------------------- */

static word length(const char *text) {
  word count = 0;
  while (text[count] != 0) count++;
  return count;
}

static int same(const char *a, const char *b) {
  while (*a != 0 && *a == *b) a++, b++;
  return *a == *b;
}

static void print(int descriptor, const char *text) { call(__NR_write, descriptor, (word)text, length(text), 0, 0); }

/* Returns the place after the last digit. */
static char *append_number(char *at, u64 value) {
  if (value >= 10) at = append_number(at, value / 10);
  *at = '0' + value % 10;
  return at + 1;
}

static void print_number(int descriptor, u64 value) {
  char digits[21];
  *append_number(digits, value) = 0;
  print(descriptor, digits);
}

static void leave(int code) {
  call(__NR_exit_group, code, 0, 0, 0, 0);
  __builtin_unreachable();
}

static void fail(const char *what, const char *about, long error) {
  print(2, NAME ": ");
  print(2, what);
  if (about != 0) print(2, " "), print(2, about);
  if (error != 0) print(2, ": error "), print_number(2, -error);
  print(2, "\n");
  leave(126);
}

/* A kernel with Landlock has these calls. But the filter of a container or of systemd may refuse calls that it does not know. */
static void need(const char *name, long error) {
  if (error != -EINVAL) fail("this kernel, or a filter around the fleet, refuses the system call", name, error);
}

static u64 number(const char *text, char end, const char **rest) {
  u64 value = 0;
  const char *at = text;
  for (; *at >= '0' && *at <= '9'; at++) value = value * 10 + (*at - '0');
  if (at == text || *at != end) fail("not a number:", text, 0);
  if (rest != 0) *rest = at + 1;
  return value;
}

/* --- Control groups ------------------------------------------------------------------------------------------------- */

/* Everything that the program starts will be in the same group. */
static void join_group(const char *folder) {
  long group = call(__NR_openat, AT_FDCWD, (word)folder, O_PATH | O_CLOEXEC, 0, 0);
  if (group < 0) fail("cannot open", folder, group);
  long members = call(__NR_openat, group, (word) "cgroup.procs", O_WRONLY | O_CLOEXEC, 0, 0);
  long error = members < 0 ? members : call(__NR_write, members, (word) "0", 1, 0, 0);
  if (error < 0) fail("cannot join the control group", folder, error);
  call(__NR_close, members, 0, 0, 0, 0);
  call(__NR_close, group, 0, 0, 0, 0);
}
