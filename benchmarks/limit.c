/* The bare loop that everything else is measured against: start a program with its output in a fresh file in a fresh
 * directory, on all cores, and record nothing.
 *
 *     limit DIRECTORY COUNT PROCESSES IN_FLIGHT PROGRAM [ARGUMENT...]
 *
 * PROCESSES loops share COUNT runs; each keeps up to IN_FLIGHT programs running. Prints one JSON line: the wall time in
 * seconds from before the first loop starts to after the last one ended, the CPU seconds of the loops and of the programs.
 * Exit code 1 if anything could not be started or ended with a code other than 0.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void must(int error, const char *what)
{
    if (error) {
        fprintf(stderr, "limit: %s: %s\n", what, strerror(error));
        exit(1);
    }
}

static void start(const char *directory, long number, char **argv)
{
    char folder[4000], output[4096];
    posix_spawn_file_actions_t actions;
    pid_t pid;

    snprintf(folder, sizeof folder, "%s/job_%ld", directory, number);
    snprintf(output, sizeof output, "%s/job.out", folder);
    must(mkdir(folder, 0777) ? errno : 0, folder);
    must(posix_spawn_file_actions_init(&actions), "actions");
    must(posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0), "stdin");
    must(posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0666), output);
    must(posix_spawn_file_actions_adddup2(&actions, 1, 2), "stderr");
    must(posix_spawn(&pid, argv[0], &actions, NULL, argv, environ), argv[0]);
    posix_spawn_file_actions_destroy(&actions);
}

static void reap(void)
{
    int status;

    must(wait(&status) < 0 ? errno : 0, "wait");
    if (status != 0) {
        fprintf(stderr, "limit: a program ended with status %d\n", status);
        exit(1);
    }
}

static void loop(const char *directory, long first, long count, long in_flight, char **argv)
{
    long running = 0;

    for (long number = first; number < first + count; number++) {
        if (running == in_flight)
            reap();
        else
            running++;
        start(directory, number, argv);
    }
    while (running-- > 0)
        reap();
}

static double seconds(struct timeval time)
{
    return time.tv_sec + time.tv_usec / 1e6;
}

static double cpu(int who)
{
    struct rusage used;

    getrusage(who, &used);
    return seconds(used.ru_utime) + seconds(used.ru_stime);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: limit DIRECTORY COUNT PROCESSES IN_FLIGHT PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    long count = atol(argv[2]), processes = atol(argv[3]), in_flight = atol(argv[4]);
    double started = now();

    for (long process = 0; process < processes; process++) {
        long first = count * process / processes, end = count * (process + 1) / processes;
        pid_t pid = fork();

        must(pid < 0 ? errno : 0, "fork");
        if (pid == 0) {
            loop(argv[1], first, end - first, in_flight, argv + 5);
            exit(0);
        }
    }
    for (long process = 0; process < processes; process++)
        reap();
    printf("{\"wall_s\": %.6f, \"cpu_s\": %.6f}\n", now() - started, cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN));
    return 0;
}
