/* MD5 (RFC 1321) of several buffers at a time, one in each lane of vector registers.

   One digest is a chain of dependent operations: a core does 0.6 GB/s of it, and is idle for most of that time. Eight
   chains side by side take hardly longer than one. GCC's and Clang's vector types are split into what the processor has,
   so that the same lines serve SSE2, AVX2 and NEON; where AVX2 is, is found out when the library is loaded. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are loaded as they lie, which is MD5's order on little-endian processors only"
#endif

#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

enum { LANES = 8, BLOCK = 64, WORDS = BLOCK / 4, LENGTH = 8, DIGEST = 16 };

typedef uint32_t vector __attribute__((vector_size(4 * LANES)));

static const uint32_t BEGIN[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};

/* floor(2^32 * |sin(i + 1)|) for step i */
static const uint32_t SINES[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};

#define ROTATED(x, by) (((x) << (by)) | ((x) >> (32 - (by))))
#define MIX_1(b, c, d) ((d) ^ ((b) & ((c) ^ (d))))
#define MIX_2(b, c, d) (((b) & (d)) + ((c) & ~(d))) /* b comes last, and is only added: the chain is shorter */
#define MIX_3(b, c, d) ((b) ^ (c) ^ (d))
#define MIX_4(b, c, d) ((c) ^ ((b) | ~(d)))
#define STEP(mix, a, b, c, d, step, word, by)            \
    a += mix(b, c, d) + (words[(word) % WORDS] + SINES[step]); \
    a = ROTATED(a, by) + b;
/* Four steps, whose words are `stride` apart. */
#define STEPS(mix, step, word, stride, by_1, by_2, by_3, by_4)       \
    STEP(mix, a, b, c, d, (step), (word), by_1)                      \
    STEP(mix, d, a, b, c, (step) + 1, (word) + (stride), by_2)       \
    STEP(mix, c, d, a, b, (step) + 2, (word) + 2 * (stride), by_3)   \
    STEP(mix, b, c, d, a, (step) + 3, (word) + 3 * (stride), by_4)
#define ROUND(mix, step, word, stride, ...)                          \
    STEPS(mix, (step), (word), stride, __VA_ARGS__)                  \
    STEPS(mix, (step) + 4, (word) + 4 * (stride), stride, __VA_ARGS__) \
    STEPS(mix, (step) + 8, (word) + 8 * (stride), stride, __VA_ARGS__) \
    STEPS(mix, (step) + 12, (word) + 12 * (stride), stride, __VA_ARGS__)

/* Digest `count` blocks of each lane; `from` moves on by `stride` bytes a block. */
FOR_EACH_PROCESSOR
static void digest_blocks(vector state[4], const uint8_t *from[LANES], const size_t stride[LANES], size_t count)
{
    vector a = state[0], b = state[1], c = state[2], d = state[3], words[WORDS];
    const uint8_t *at[LANES];

    memcpy(at, from, sizeof at);
    while (count--) {
        const vector before[4] = {a, b, c, d};
        for (int word = 0; word < WORDS; word++) {
            uint32_t loaded[LANES];
            for (int lane = 0; lane < LANES; lane++)
                memcpy(&loaded[lane], at[lane] + 4 * word, 4);
            memcpy(&words[word], loaded, sizeof loaded);
        }
        for (int lane = 0; lane < LANES; lane++)
            at[lane] += stride[lane];
        ROUND(MIX_1, 0, 0, 1, 7, 12, 17, 22)
        ROUND(MIX_2, 16, 1, 5, 5, 9, 14, 20)
        ROUND(MIX_3, 32, 5, 3, 4, 11, 16, 23)
        ROUND(MIX_4, 48, 0, 7, 6, 10, 15, 21)
        a += before[0], b += before[1], c += before[2], d += before[3];
    }
    memcpy(from, at, sizeof at);
    state[0] = a, state[1] = b, state[2] = c, state[3] = d;
}

struct job {
    size_t number;
    size_t blocks; /* left of the buffer, or of its end; 0: the lane has no job */
    int is_ending;
    size_t end_blocks;
    uint8_t end[2 * BLOCK]; /* what is left after whole blocks, 0x80, zeros, and the length in bits */
};

static void pad(struct job *job, const uint8_t *data, size_t size)
{
    const size_t rest = size % BLOCK;
    const uint64_t bits = (uint64_t)size * 8;

    memset(job->end, 0, sizeof job->end);
    if (rest)
        memcpy(job->end, data + size - rest, rest);
    job->end[rest] = 0x80;
    job->end_blocks = rest + 1 + LENGTH > BLOCK ? 2 : 1;
    memcpy(job->end + job->end_blocks * BLOCK - LENGTH, &bits, LENGTH);
}

static const uint8_t *turn_to_end(struct job *job)
{
    job->is_ending = 1;
    job->blocks = job->end_blocks;
    return job->end;
}

/* Write the MD5 of each of `count` buffers to `digests`. */
void prismcache_md5(size_t count, const uint8_t *const data[], const size_t sizes[], uint8_t digests[][DIGEST])
{
    struct job jobs[LANES] = {{0}};
    vector state[4] = {{0}};
    const uint8_t *from[LANES];
    size_t stride[LANES] = {0}, begun = 0;

    for (int lane = 0; lane < LANES; lane++)
        from[lane] = jobs[lane].end; /* a lane without a job reads what is there again and again */
    for (;;) {
        size_t least = 0;
        for (int lane = 0; lane < LANES; lane++) {
            struct job *job = &jobs[lane];
            if (!job->blocks && begun < count) {
                const size_t number = job->number = begun++;
                pad(job, data[number], sizes[number]);
                job->is_ending = 0;
                job->blocks = sizes[number] / BLOCK;
                from[lane] = job->blocks ? data[number] : turn_to_end(job);
                stride[lane] = BLOCK;
                for (int word = 0; word < 4; word++)
                    state[word][lane] = BEGIN[word];
            }
            if (job->blocks && (!least || job->blocks < least))
                least = job->blocks;
        }
        if (!least)
            return;
        digest_blocks(state, from, stride, least);
        for (int lane = 0; lane < LANES; lane++) {
            struct job *job = &jobs[lane];
            if (!job->blocks || (job->blocks -= least))
                continue;
            if (!job->is_ending) {
                from[lane] = turn_to_end(job);
                continue;
            }
            for (int word = 0; word < 4; word++) {
                const uint32_t part = state[word][lane];
                memcpy(&digests[job->number][4 * word], &part, sizeof part);
            }
            from[lane] = job->end;
            stride[lane] = 0;
        }
    }
}
