/* Posts texts over keep-alive connections as fast as they are answered, each connection one at a time.
 *
 *   load PORT PATH CONNECTIONS SECONDS FIRST_ID [MOST] < body
 *
 * In the body "000000000000" becomes the id of the text and "5550000000" a number out of 1000. Stops after SECONDS or
 * MOST posts and prints one JSON object; times are CLOCK_MONOTONIC in seconds, latencies in microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 65536, CONVERSATIONS = 1000 };

struct connection { int fd; size_t got; double since; char answer[ROOM]; };

static char request[ROOM];
static size_t request_size;
static char *id_at[8], *number_at[8];
static int ids, numbers;
static long next_id, posted, most;
static float *latencies;
static long answered, capacity, statuses[600];

static void die(const char *what) { perror(what); exit(1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void prepare(const char *path) {
    char body[ROOM / 2];
    size_t size = fread(body, 1, sizeof body - 1, stdin);
    body[size] = 0;
    request_size = snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml; charset=UTF-8\r\n"
        "User-Agent: CallFire-HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: %zu\r\n\r\n%s", path, size, body);
    for (char *at = request; (at = strstr(at, "000000000000")) && ids < 8; at += 12) id_at[ids++] = at;
    for (char *at = request; (at = strstr(at, "5550000000")) && numbers < 8; at += 10) number_at[numbers++] = at;
}

static void post(struct connection *c) {
    char digits[16];
    snprintf(digits, sizeof digits, "%012ld", next_id);
    for (int i = 0; i < ids; i++) memcpy(id_at[i], digits, 12);
    snprintf(digits, sizeof digits, "%04ld", next_id % CONVERSATIONS);
    for (int i = 0; i < numbers; i++) memcpy(number_at[i] + 6, digits, 4);
    next_id++, posted++;
    c->got = 0;
    c->since = now();
    if (write(c->fd, request, request_size) != (ssize_t)request_size) die("write");
}

static int complete(struct connection *c) {
    c->answer[c->got] = 0;
    char *end = strstr(c->answer, "\r\n\r\n"), *length = strcasestr(c->answer, "content-length:");
    if (!end) return 0;
    return c->got >= (size_t)(end + 4 - c->answer) + (length ? atol(length + 15) : 0);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void note(struct connection *c) {
    if (answered == capacity && !(latencies = realloc(latencies, (capacity = capacity * 2 + 65536) * sizeof *latencies)))
        die("realloc");
    latencies[answered++] = (now() - c->since) * 1e6;
    statuses[atoi(c->answer + 9) % 600]++;
}

int main(int argc, char **argv) {
    if (argc < 6) return fprintf(stderr, "load PORT PATH CONNECTIONS SECONDS FIRST_ID [MOST] < body\n"), 2;
    int count = atoi(argv[3]), open = 0;
    double seconds = atof(argv[4]);
    next_id = atol(argv[5]);
    most = argc > 6 ? atol(argv[6]) : 1L << 60;
    prepare(argv[2]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct connection *all = calloc(count, sizeof *all);
    int poll = epoll_create1(0), yes = 1;
    for (int i = 0; i < count; i++) {
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(all[i].fd, (struct sockaddr *)&to, sizeof to)) die("connect");
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event want = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &want);
    }
    double started = now(), until = started + seconds;
    for (int i = 0; i < count && posted < most; i++, open++) post(&all[i]);
    while (open) {
        struct epoll_event ready[256];
        int found = epoll_wait(poll, ready, 256, 30000);
        if (found <= 0) return fprintf(stderr, "load: no answer for 30 s\n"), 1;
        for (int i = 0; i < found; i++) {
            struct connection *c = ready[i].data.ptr;
            ssize_t size = read(c->fd, c->answer + c->got, ROOM - 1 - c->got);
            if (size <= 0) return fprintf(stderr, "load: a connection was closed\n"), 1;
            c->got += size;
            if (!complete(c)) continue;
            note(c);
            if (posted < most && now() < until) post(c); else open--;
        }
    }
    double ended = now();
    qsort(latencies, answered, sizeof *latencies, ascending);
    printf("{\"started\": %.6f, \"ended\": %.6f, \"answered\": %ld, \"ok\": %ld, \"unavailable\": %ld, \"p50\": %.1f, \"p99\": %.1f}\n",
        started, ended, answered, statuses[200], statuses[503], latencies[answered / 2], latencies[(long)(answered * 0.99)]);
    return 0;
}
