/* The CPU engine's tile interpreter as one would write it in C, for this machine's processor: what bench_formulas.py
 * holds the engine against. One record per operation, one handler per operation, tiles of 1,024 lanes in scratch of the
 * engine's stride; the records are the engine's own (benchmarks/bench_formulas.py translates them), so that both run the
 * same operations in the same order, with the same minima and maxima (NaN wins, -0 < +0) and the same canonical NaNs.
 * It has no traps, masks, faults, rings or threads: it is the roof of an interpreter, not another engine. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 1024, STRIDE = 4096 + 64, SCRATCH = 192, INPUTS = 192, OUTPUTS = 448, POINTERS = 704 };

typedef struct Context Context;
typedef struct Op Op;
typedef const Op *(*Handler)(Context *, const Op *);

struct Op {
    Handler run;
    uint32_t dst, a, b, c;
    union {
        uint32_t bits;
        float value;
    } imm;
};

struct Context {
    uint64_t n;
    char **ptrs;
};

static inline float same(float x) { return x; }

static inline float canonical(float x)
{
    union {
        uint32_t u;
        float f;
    } nan = {0x7fc00000u};
    return x != x ? nan.f : x;
}

static inline uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float from(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float minimum(float x, float y)
{
    float m = x < y ? x : y;
    m = x == y ? from(bits(x) | bits(y)) : m;
    return x != x || y != y ? x + y : m;
}

static inline float maximum(float x, float y)
{
    float m = x > y ? x : y;
    m = x == y ? from(bits(x) & bits(y)) : m;
    return x != x || y != y ? x + y : m;
}

/* An operand is the same memory as the result or another memory, never a part of it. */
#define EACH _Pragma("GCC ivdep") for (uint64_t i = 0; i < n; i++)

#define HANDLER(NAME, BODY)                                        \
    static const Op *NAME(Context *ctx, const Op *op)              \
    {                                                              \
        const uint64_t n = ctx->n;                                 \
        float *d = (float *)ctx->ptrs[op->dst];                    \
        const float *a = (const float *)ctx->ptrs[op->a];          \
        const float *b = (const float *)ctx->ptrs[op->b];          \
        const float s = op->imm.value;                             \
        (void)a, (void)b, (void)s;                                 \
        BODY return op + 1;                                        \
    }

#define BINARY(NAME, EXPRESSION_OF_X_AND_Y)                                                               \
    static inline float NAME##_of(float x, float y) { return EXPRESSION_OF_X_AND_Y; }                     \
    HANDLER(NAME##_vv, EACH d[i] = NAME##_of(a[i], b[i]);)                                                \
    HANDLER(NAME##_vs, EACH d[i] = NAME##_of(a[i], s);)                                                   \
    HANDLER(NAME##_sv, EACH d[i] = NAME##_of(s, b[i]);)                                                   \
    HANDLER(NAME##_vv_c, EACH d[i] = canonical(NAME##_of(a[i], b[i]));)                                   \
    HANDLER(NAME##_vs_c, EACH d[i] = canonical(NAME##_of(a[i], s));)                                      \
    HANDLER(NAME##_sv_c, EACH d[i] = canonical(NAME##_of(s, b[i]));)

BINARY(add, x + y)
BINARY(sub, x - y)
BINARY(mul, x * y)
BINARY(divide, x / y)
BINARY(min, minimum(x, y))
BINARY(max, maximum(x, y))
HANDLER(sqrt_v, EACH d[i] = sqrtf(a[i]);)
HANDLER(sqrt_v_c, EACH d[i] = canonical(sqrtf(a[i]));)
HANDLER(abs_v, EACH d[i] = fabsf(a[i]);)
HANDLER(neg_v, EACH d[i] = -a[i];)

#define COMPARE(NAME, SIGN)                                                        \
    HANDLER(NAME##_vv, EACH((int32_t *)d)[i] = a[i] SIGN b[i];)                    \
    HANDLER(NAME##_vs, EACH((int32_t *)d)[i] = a[i] SIGN s;)

COMPARE(lt, <)
COMPARE(gt, >)

static const Op *select_vv(Context *ctx, const Op *op)
{
    const uint64_t n = ctx->n;
    uint32_t *d = (uint32_t *)ctx->ptrs[op->dst];
    const uint32_t *a = (const uint32_t *)ctx->ptrs[op->a], *b = (const uint32_t *)ctx->ptrs[op->b];
    const int32_t *c = (const int32_t *)ctx->ptrs[op->c];
    EACH {
        const uint32_t x = a[i], y = b[i]; /* both are read, or the loop is no vector's */
        d[i] = c[i] ? x : y;
    }
    return op + 1;
}

static const Op *fill(Context *ctx, const Op *op)
{
    const uint64_t n = ctx->n;
    uint32_t *d = (uint32_t *)ctx->ptrs[op->dst];
    const uint32_t s = op->imm.bits;
    EACH d[i] = s;
    return op + 1;
}

static const Op *end(Context *ctx, const Op *op)
{
    (void)ctx, (void)op;
    return NULL;
}

#define SIX(NAME, C)                                                                                   \
    {NAME, C##_vv}, {NAME ".vs", C##_vs}, {NAME ".sv", C##_sv}, {NAME ".canonical", C##_vv_c},         \
    {NAME ".vs.canonical", C##_vs_c}, {NAME ".sv.canonical", C##_sv_c}

static const struct {
    const char *name;
    Handler run;
} HANDLERS[] = {
    SIX("f32.add", add), SIX("f32.sub", sub), SIX("f32.mul", mul), SIX("f32.div", divide),
    SIX("f32.min", min), SIX("f32.max", max),
    {"f32.sqrt", sqrt_v}, {"f32.sqrt.canonical", sqrt_v_c}, {"f32.abs", abs_v}, {"f32.neg", neg_v},
    {"f32.lt", lt_vv}, {"f32.lt.vs", lt_vs}, {"f32.gt", gt_vv}, {"f32.gt.vs", gt_vs},
    {"select.4", select_vv}, {"fill.4", fill}, {"return", end},
};

/* Address of the handler of an operation of the engine, NULL when there is none here. */
void *handler(const char *name)
{
    for (size_t i = 0; i < sizeof HANDLERS / sizeof *HANDLERS; i++)
        if (!strcmp(HANDLERS[i].name, name))
            return (void *)HANDLERS[i].run;
    return NULL;
}

size_t op_bytes(void) { return sizeof(Op); }

/* Run a program over all elements. Returns 0, or 1 when memory is short. */
int run(const Op *prologue, const Op *body, char **inputs, uint64_t n_inputs, char *output, uint64_t elements)
{
    char *scratch = aligned_alloc(64, (size_t)SCRATCH * STRIDE);
    char *ptrs[POINTERS];
    if (!scratch)
        return 1;
    for (uint64_t i = 0; i < SCRATCH; i++)
        ptrs[i] = scratch + i * STRIDE;
    Context ctx = {LANES, ptrs};
    for (const Op *op = prologue; op;)
        op = op->run(&ctx, op);
    for (uint64_t first = 0; first < elements; first += LANES) {
        ctx.n = elements - first < LANES ? elements - first : LANES;
        for (uint64_t i = 0; i < n_inputs; i++)
            ptrs[INPUTS + i] = inputs[i] + 4 * first;
        ptrs[OUTPUTS] = output + 4 * first;
        for (const Op *op = body; op;)
            op = op->run(&ctx, op);
    }
    free(scratch);
    return 0;
}
