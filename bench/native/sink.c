/* A mail server that takes everything, with PIPELINING.
 *
 *   sink
 *
 * Prints its port, and from then on for every line on its standard input one JSON object: how many mails it has, and
 * when the last one came (CLOCK_MONOTONIC, seconds). Ends when its standard input ends. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <netinet/tcp.h>

enum { ROOM = 1 << 20 };

struct session { int fd, in_data; size_t got; char in[ROOM]; char out[ROOM]; size_t said; };

static long mails;
static double last;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void say(struct session *s, const char *words) {
    size_t size = strlen(words);
    memcpy(s->out + s->said, words, size);
    s->said += size;
}

static void command(struct session *s, const char *line) {
    if (!strncasecmp(line, "EHLO", 4)) say(s, "250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n");
    else if (!strncasecmp(line, "DATA", 4)) say(s, "354 go on\r\n"), s->in_data = 1;
    else if (!strncasecmp(line, "QUIT", 4)) say(s, "221 bye\r\n");
    else say(s, "250 OK\r\n");
}

static void understand(struct session *s) {
    char *at = s->in, *end = s->in + s->got, *found;
    for (;;) {
        if (s->in_data) {
            if (!(found = memmem(at, end - at, "\r\n.\r\n", 5))) break;
            at = found + 5, s->in_data = 0, mails++, last = now();
            say(s, "250 OK\r\n");
        } else {
            if (!(found = memmem(at, end - at, "\r\n", 2))) break;
            *found = 0;
            command(s, at);
            at = found + 2;
        }
    }
    s->got = end - at;
    memmove(s->in, at, s->got);
}

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0), yes = 1;
    if (bind(listener, (struct sockaddr *)&here, size) || listen(listener, 64)) return perror("sink"), 1;
    getsockname(listener, (struct sockaddr *)&here, &size);
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    struct session asking = {.fd = 0}, accepting = {.fd = listener};
    struct epoll_event want = {.events = EPOLLIN, .data.ptr = &asking};
    epoll_ctl(poll, EPOLL_CTL_ADD, 0, &want);
    want.data.ptr = &accepting;
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &want);
    for (;;) {
        struct epoll_event ready[64];
        int found = epoll_wait(poll, ready, 64, -1);
        for (int i = 0; i < found; i++) {
            struct session *s = ready[i].data.ptr;
            if (s == &asking) {
                char line[256];
                if (read(0, line, sizeof line) <= 0) return 0;
                printf("{\"mails\": %ld, \"last\": %.6f}\n", mails, last);
                fflush(stdout);
            } else if (s == &accepting) {
                struct session *new = calloc(1, sizeof *new);
                new->fd = accept(listener, 0, 0);
                setsockopt(new->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                want.data.ptr = new;
                epoll_ctl(poll, EPOLL_CTL_ADD, new->fd, &want);
                if (write(new->fd, "220 sink ESMTP\r\n", 16) < 0) perror("sink");
            } else {
                ssize_t came = s->got < ROOM ? read(s->fd, s->in + s->got, ROOM - s->got) : 0;
                if (came <= 0) { close(s->fd); free(s); continue; }
                s->got += came;
                understand(s);
            }
            if (s != &asking && s != &accepting && s->said) {
                if (write(s->fd, s->out, s->said) < 0) perror("sink");
                s->said = 0;
            }
        }
    }
}
