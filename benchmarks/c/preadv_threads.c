/* A file into memory that somebody else pinned, by threads that call preadv: what bench_cuda_stream.py holds copying against.
 * Each thread takes the next chunk; chunk k goes to place k modulo the places that the pool has, whoever may still read it. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct {
    int fd;
    uint64_t size, chunk, places;
    char *pool;
    atomic_uint_fast64_t next;
    atomic_int failed;
} Job;

static void *work(void *given) {
    Job *job = given;
    uint64_t chunks = (job->size + job->chunk - 1) / job->chunk;
    for (;;) {
        uint64_t k = atomic_fetch_add(&job->next, 1);
        if (k >= chunks) return 0;
        uint64_t at = k * job->chunk, got = 0;
        uint64_t length = job->size - at < job->chunk ? job->size - at : job->chunk;
        while (got < length) {
            struct iovec to = { job->pool + (k % job->places) * job->chunk + got, job->chunk - got };
            ssize_t n = preadv(job->fd, &to, 1, (off_t)(at + got));
            if (n <= 0) {
                atomic_store(&job->failed, 1);
                return 0;
            }
            got += (uint64_t)n;
        }
    }
}

/* 0, or 1 when a read failed. Chunks and places are whole blocks, so that O_DIRECT takes them. */
int preadv_threads(int fd, uint64_t size, uint64_t chunk, char *pool, uint64_t pool_bytes, int threads) {
    Job job = { fd, size, chunk, pool_bytes / chunk, pool, 0, 0 };
    pthread_t ids[256];
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], 0, work, &job);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], 0);
    return atomic_load(&job.failed);
}
