/* Preloaded into `walden`: kills it before or after one of its durable writes to local files. WALDEN_TEST_KILL says which:
 * `<step> <before|after> <part> <number>`, the number-th (from 1) of the steps whose path holds this part. Steps:
 *   file    the bytes of a file are flushed
 *   rename  a file gets its name; the path is the new one
 *   folder  the folder is flushed after a rename that counted
 * The program makes some of these system calls itself and not through the C library: so the kernel is asked to trap them all, and
 * makes them when it is asked again from here. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* The sixth argument of the calls that are made from here; no call that is trapped has six of its own. */
#define OURS 0x57414c44

static char step[16], when[16], part[256];
static int left;
static __thread int has_renamed;

#if defined(__x86_64__)
#define ARGUMENT(context, n) \
    ((context)->uc_mcontext.gregs[(const int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8}[n]])
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define ARGUMENT(context, n) ((context)->uc_mcontext.regs[n])
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#endif

static const char *renamed_to(long call, ucontext_t *context)
{
    switch (call) {
#ifdef SYS_rename
    case SYS_rename:
        return (const char *)ARGUMENT(context, 1);
#endif
#ifdef SYS_renameat
    case SYS_renameat:
        return (const char *)ARGUMENT(context, 3);
#endif
    case SYS_renameat2:
        return (const char *)ARGUMENT(context, 3);
    }
    return NULL;
}

/* Whether this call is the one. */
static int is_due(long call, ucontext_t *context)
{
    char link[64], path[PATH_MAX] = "";
    const char *now = "rename", *name = renamed_to(call, context);
    if (!name) {
        struct stat status;
        int file = (int)ARGUMENT(context, 0);
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        if (fstat(file, &status) || readlink(link, path, sizeof path - 1) < 0)
            return 0;
        name = path;
        now = S_ISDIR(status.st_mode) ? "folder" : "file";
    }
    int counts = strcmp(now, "folder") ? strstr(name, part) != NULL : has_renamed;
    has_renamed = counts && !strcmp(now, "rename");
    return counts && !strcmp(now, step) && __atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST) == 0;
}

static void trapped(int signal, siginfo_t *info, void *data)
{
    (void)signal;
    ucontext_t *context = data;
    int kept = errno, due = is_due(info->si_syscall, context);
    if (due && !strcmp(when, "before"))
        kill(getpid(), SIGKILL);
    long result = syscall(info->si_syscall, ARGUMENT(context, 0), ARGUMENT(context, 1), ARGUMENT(context, 2),
                          ARGUMENT(context, 3), ARGUMENT(context, 4), (long)OURS);
    RESULT(context) = result < 0 ? -errno : result;
    if (due)
        kill(getpid(), SIGKILL);
    errno = kept;
}

__attribute__((constructor)) static void begin(void)
{
    const char *wish = getenv("WALDEN_TEST_KILL");
    if (!wish || sscanf(wish, "%15s %15s %255s %d", step, when, part, &left) != 4)
        return;
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);
#define TRAP(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 3), \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])), \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 1, 0), \
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
#ifdef SYS_rename
        TRAP(SYS_rename),
#endif
#ifdef SYS_renameat
        TRAP(SYS_renameat),
#endif
        TRAP(SYS_renameat2),
        TRAP(SYS_fsync),
        TRAP(SYS_fdatasync),
        TRAP(SYS_syncfs),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        _exit(99);
    }
}
