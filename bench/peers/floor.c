/* The floor: the cheapest server that still speaks WebSocket. One thread, epoll; it answers each text frame with an ack of
 * the id that it finds in it, and checks nothing: no token, no JSON, no masks that are missing, no pings.
 *
 *   cc -O2 -o floor floor.c && ./floor
 *
 * It writes "listening PORT" and ends with its stdin. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 65536, MAX_FDS = 65536, EVENTS = 512 };

/* What is kept of a connection between reads: the start of a message that is not whole. */
typedef struct {
    unsigned char *held;
    size_t size;
    int open;
} client;

static client clients[MAX_FDS];
static unsigned char in[READ_SIZE * 2], out[READ_SIZE * 4];

/* SHA-1 (FIPS 180-4) of at most 119 bytes: two blocks. */
static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1(const unsigned char *data, size_t size, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char padded[128] = {0};
    size_t blocks = (size + 9 + 63) / 64;
    memcpy(padded, data, size);
    padded[size] = 0x80;
    padded[blocks * 64 - 2] = (unsigned char)(size * 8 >> 8);
    padded[blocks * 64 - 1] = (unsigned char)(size * 8);
    for (size_t block = 0; block < blocks; block++) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int t = 0; t < 16; t++) {
            const unsigned char *p = padded + block * 64 + t * 4;
            w[t] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int t = 16; t < 80; t++) w[t] = rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
        for (int t = 0; t < 80; t++) {
            uint32_t f = t < 20 ? (b & c) | (~b & d) : t < 40 ? b ^ c ^ d : t < 60 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
            uint32_t k = t < 20 ? 0x5A827999 : t < 40 ? 0x6ED9EBA1 : t < 60 ? 0x8F1BBCDC : 0xCA62C1D6;
            uint32_t next = rotate(a, 5) + f + e + k + w[t];
            e = d, d = c, c = rotate(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - i % 4 * 8));
}

static void base64(const unsigned char *data, size_t size, char *text) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t bits = (uint32_t)data[i] << 16;
        if (i + 1 < size) bits |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < size) bits |= data[i + 2];
        for (int n = 0; n < 4; n++) *text++ = i + (size_t)n > size ? '=' : letters[bits >> (18 - 6 * n) & 63];
    }
    *text = 0;
}

/* The opening handshake (RFC 6455 section 4.2.2), or 0 while the request is not whole. */
static size_t handshake(unsigned char *data, size_t size, int fd) {
    static const char field[] = "sec-websocket-key:", guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    unsigned char *end = memmem(data, size, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    *end = 0;
    char joined[120], accept[32], answer[256];
    unsigned char digest[20];
    const char *key = strcasestr((char *)data, field);
    if (key == NULL) return 0;
    key += sizeof field - 1;
    key += strspn(key, " ");
    int length = snprintf(joined, sizeof joined, "%.*s%s", (int)strcspn(key, " \r\n") % 64, key, guid);
    sha1((unsigned char *)joined, (size_t)length, digest);
    base64(digest, sizeof digest, accept);
    length = snprintf(answer, sizeof answer,
                      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Accept: %s\r\n\r\n",
                      accept);
    if (write(fd, answer, (size_t)length) != length) return 0;
    return (size_t)(end - data) + 4;
}

static size_t ack(const unsigned char *text, size_t size, const char *now, unsigned char *frame) {
    const unsigned char *id = memmem(text, size, "\"id\":", 5);
    int digits = 0;
    if (id != NULL)
        for (id += 5; id + digits < text + size && id[digits] >= '0' && id[digits] <= '9'; digits++) continue;
    int length = snprintf((char *)frame + 4, 512,
                          "{\"event\":\"ack\",\"id\":%.*s,\"data\":{\"success\":true,\"data\":{\"reconcileContent\":false,"
                          "\"nextHeartbeatIn\":15000,\"commands\":[]},\"timestamp\":\"%s\"}}",
                          digits, (const char *)id, now);
    frame[0] = 0x81;
    frame[1] = 126;
    frame[2] = (unsigned char)(length >> 8);
    frame[3] = (unsigned char)length;
    return (size_t)length + 4;
}

/* Answer all whole frames; how many bytes they were, or -1: it is over. */
static ssize_t frames(unsigned char *data, size_t size, int fd) {
    size_t at = 0, queued = 0;
    char now[40];
    struct timespec time;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &time);
    gmtime_r(&time.tv_sec, &parts);
    snprintf(now + strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%S", &parts), 8, ".%03dZ", (int)(time.tv_nsec / 1000000));
    while (size - at >= 6) {
        unsigned char *frame = data + at, *mask;
        size_t length = frame[1] & 127, head = 2;
        if (length == 127) return -1;
        if (length == 126) {
            length = (size_t)frame[2] << 8 | frame[3];
            head = 4;
        }
        mask = frame + head;
        head += 4;
        if (size - at < head + length) break;
        if ((frame[0] & 15) == 8) return -1;
        for (size_t i = 0; i < length; i++) frame[head + i] ^= mask[i & 3];
        if ((frame[0] & 15) == 1) queued += ack(frame + head, length, now, out + queued);
        at += head + length;
        if (queued > sizeof out - 1024) return -1;
    }
    if (queued && write(fd, out, queued) != (ssize_t)queued) return -1;
    return (ssize_t)at;
}

static void leave(int fd) {
    free(clients[fd].held);
    memset(&clients[fd], 0, sizeof clients[fd]);
    close(fd);
}

static void readable(int fd) {
    client *from = &clients[fd];
    size_t size = from->size;
    memcpy(in, from->held, size);
    ssize_t got = read(fd, in + size, READ_SIZE);
    if (got <= 0) {
        leave(fd);
        return;
    }
    size += (size_t)got;
    size_t at = 0;
    if (!from->open) {
        at = handshake(in, size, fd);
        from->open = at > 0;
    }
    if (from->open) {
        ssize_t taken = frames(in + at, size - at, fd);
        if (taken < 0) {
            leave(fd);
            return;
        }
        at += (size_t)taken;
    }
    free(from->held);
    from->held = NULL;
    from->size = size - at;
    if (from->size > READ_SIZE) {
        leave(fd);
    } else if (from->size) {
        from->held = malloc(from->size);
        memcpy(from->held, in + at, from->size);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), queue = epoll_create1(0), on = 1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(queue, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = STDIN_FILENO;
    epoll_ctl(queue, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    for (;;) {
        int count = epoll_wait(queue, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) return 0;
            if (fd != listener) {
                readable(fd);
                continue;
            }
            fd = accept(listener, NULL, NULL);
            if (fd < 0 || fd >= MAX_FDS) {
                close(fd);
                continue;
            }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            event.data.fd = fd;
            epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
