/* Sum of a file of float32 as one would write it in C: pread into a buffer that stays in the cache, each tile of 1,024
 * widened to doubles and halved, tiles of a span of 1,024 halved, spans added left to right. The same order as vyre's, so
 * the same bits. Threads take spans in turn. What bench_hot_sum.py holds the engine against. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

enum { TILE = 1024, SPAN = 1024 };

typedef struct {
    int fd;
    uint64_t elements, spans, chunk;
    atomic_uint_fast64_t next;
    atomic_int failed;
    double *results;
} Job;

static double halve(double *x, int width)
{
    for (int s = width / 2; s; s /= 2)
        for (int i = 0; i < s; i++)
            x[i] += x[i + s];
    return x[0];
}

/* The first halving adds while it widens. Missing elements count as -0.0. */
static double tile(const float *x, uint64_t n)
{
    _Alignas(64) double wide[TILE / 2];
    if (n < TILE) {
        _Alignas(64) double all[TILE];
        for (uint64_t i = 0; i < TILE; i++)
            all[i] = i < n ? (double)x[i] : -0.0;
        return halve(all, TILE);
    }
    for (int i = 0; i < TILE / 2; i++)
        wide[i] = (double)x[i] + (double)x[i + TILE / 2];
    return halve(wide, TILE / 2);
}

static void *work(void *argument)
{
    Job *job = argument;
    float *buffer = aligned_alloc(4096, job->chunk);
    double tiles[SPAN];
    for (;;) {
        const uint64_t span = atomic_fetch_add(&job->next, 1);
        if (span >= job->spans || !buffer)
            break;
        const uint64_t first = span * TILE * SPAN;
        const uint64_t n = job->elements - first < TILE * SPAN ? job->elements - first : TILE * SPAN;
        uint64_t done = 0, t = 0;
        while (done < n) {
            const uint64_t want = 4 * (n - done) < job->chunk ? 4 * (n - done) : job->chunk;
            if (pread(job->fd, buffer, want, 4 * (first + done)) != (ssize_t)want) {
                job->failed = 1;
                break;
            }
            for (uint64_t at = 0; at < want / 4; at += TILE)
                tiles[t++] = tile(buffer + at, want / 4 - at < TILE ? want / 4 - at : TILE);
            done += want / 4;
        }
        while (t < SPAN)
            tiles[t++] = -0.0;
        job->results[span] = halve(tiles, SPAN);
    }
    free(buffer);
    return NULL;
}

/* Returns 0, or 1 when the file could not be read. chunk: bytes of one pread, a multiple of 4,096. */
int pread_sum(int fd, uint64_t elements, uint64_t chunk, int threads, double *sum)
{
    Job job = {.fd = fd, .elements = elements, .spans = (elements + TILE * SPAN - 1) / (TILE * SPAN), .chunk = chunk};
    pthread_t other[64];
    job.results = malloc(8 * (job.spans + 1));
    for (int i = 1; i < threads; i++)
        pthread_create(&other[i], NULL, work, &job);
    work(&job);
    for (int i = 1; i < threads; i++)
        pthread_join(other[i], NULL);
    double total = 0.0;
    for (uint64_t i = 0; i < job.spans; i++)
        total += job.results[i];
    free(job.results);
    *sum = total;
    return job.failed;
}
