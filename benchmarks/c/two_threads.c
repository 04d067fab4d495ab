/* What a second thread gains on this machine at the best: a loop of multiplications and additions over 16 KiB that stay in
 * the first-level cache, by one thread and, twice as much, by two. Two cores of a virtual machine may be one of the host. */

#include <pthread.h>
#include <stdint.h>

enum { LANES = 4096, TURNS = 60000 };

static float lanes[2][LANES] __attribute__((aligned(64)));

static void *work(void *argument)
{
    float *x = lanes[(intptr_t)argument];
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < LANES; i++)
            x[i] = x[i] * 1.0001f + 0.5f;
    return 0;
}

void one(void) { work(0); }

void two(void)
{
    pthread_t other;
    pthread_create(&other, 0, work, (void *)(intptr_t)1);
    work(0);
    pthread_join(other, 0);
}
