/* Kernels over packed matrices, and those that make them: the border between C++ and everybody else.
 *
 * docs/FORMAT.md defines the bytes, src/laq/kernels/reference.py the operations. Nothing here allocates
 * matrices, throws, or keeps a pointer after it returned. Functions may be called from several threads.
 * Functions that return int32_t give LAQ_OK or one of the other codes.
 */
#ifndef LAQ_H
#define LAQ_H

#include <stdint.h>

#if defined(_WIN32)
#define LAQ_API __declspec(dllexport)
#else
#define LAQ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or function below changes. */
#define LAQ_ABI_VERSION 8

enum {
    LAQ_OK = 0,
    LAQ_BAD_SHAPE = 1,       /* a size is negative, zero where it may not be, or too large */
    LAQ_BAD_TILE = 2,        /* a tag, a column group, or the order of tiles */
    LAQ_BAD_SIZE = 3,        /* payload or zero points are not as long as the tiles say */
    LAQ_BAD_SCALE = 4,       /* an octave or the byte of a tile out of range, or a float16 scale that is not finite */
    LAQ_BAD_PERMUTATION = 5, /* an index out of range or twice */
    LAQ_BAD_ARGUMENT = 6,    /* an unknown type, tier or mode; siblings that do not share their input */
    LAQ_NO_MEMORY = 7,
    LAQ_BAD_OUTLIER = 8,     /* a row that ends before it starts, or a column out of range */
};

enum { LAQ_FLOAT32 = 0, LAQ_BFLOAT16 = 1, LAQ_FLOAT16 = 2, LAQ_INT64 = 3, LAQ_BOOL = 4 }; /* the last two in steps only */
/* Powers of two are only searched: a packed matrix has them as LOG8. */
enum { LAQ_SCALES_FLOAT16 = 0, LAQ_SCALES_LOG8 = 1, LAQ_SCALES_LOG4 = 2, LAQ_SCALES_E8M0 = 3 };

/* A packed matrix. All pointers belong to the caller and are aligned to what they point to. */
typedef struct {
    int64_t n_rows, n_columns; /* before padding */
    int32_t group_size;        /* 32, 64 or 128 */
    int32_t scale_format;
    int64_t n_tiles;                   /* stored tiles */
    int64_t payload_bytes;             /* sum over tiles, see docs/FORMAT.md */
    int64_t zero_point_bytes;          /* sum of 2 * width over tiles of integers */
    const uint8_t *payload;            /* bricks */
    const uint8_t *bits;               /* [n_tiles] tags, see docs/FORMAT.md */
    const uint16_t *groups;            /* [n_tiles] */
    const void *scales;                /* [n_tiles, 16] uint8 or float16, for LOG4 [n_tiles, 9] */
    const int8_t *octaves;             /* [row blocks] base-2 exponent of each row block, for LOG8 and LOG4 */
    const uint8_t *zero_points;        /* of integers, as wide as codes, 16 a tile */
    const int32_t *tile_starts;        /* [row blocks + 1] first stored tile of each row block */
    const int64_t *zero_offsets;       /* [row blocks] byte of zero_points where each row block starts */
    const int64_t *row_offsets;        /* [row blocks] byte of the payload where each row block starts */
    const void *row_permutation;       /* source row of each stored row, or NULL */
    const void *column_permutation;    /* source column of each stored column, or NULL */
    int32_t row_index_bytes;           /* 2 or 4: size of an index in row_permutation */
    int32_t column_index_bytes;        /* the same for column_permutation */
    const uint8_t *palettes;           /* [28] entries of 2, 3 and 4 bits, or NULL without tiles that use them */
} laq_matrix;

/* A matrix of few elements, row by row. */
typedef struct {
    int64_t n_rows, n_columns;
    int64_t n;              /* elements */
    const int32_t *starts;  /* [n_rows + 1] first element of each row; the last is n */
    const void *columns;    /* [n], column_bytes each, 2 or 4 */
    const uint16_t *values; /* [n] bfloat16 */
    int32_t column_bytes;
} laq_outliers;

LAQ_API int32_t laq_abi_version(void);

/* Name of tier i of those this machine can run, slowest first; NULL beyond the last. */
LAQ_API const char *laq_tier(int32_t index);
/* The tier in use. */
LAQ_API const char *laq_current_tier(void);
/* Use a tier by name. LAQ_BAD_ARGUMENT if this machine cannot run it. */
LAQ_API int32_t laq_use_tier(const char *name);

/* Threads that share one call, the caller included. */
LAQ_API int32_t laq_set_threads(int32_t n_threads);
LAQ_API int32_t laq_threads(void);

/* Check all that the other functions rely on; they do not check again. */
LAQ_API int32_t laq_check(const laq_matrix *matrix);

/* y_i = x W_i' + bias_i for n_matrices matrices with one column permutation, group size and width.
 *
 * x       [n_inputs, n_columns], rows `stride` elements apart
 * y       n_matrices pointers to [n_inputs, n_rows_i], contiguous, of x's type
 * bias    n_matrices pointers to float32 [n_rows_i] or NULL; NULL for none at all
 * activation_bits
 *         8 or 16: inputs are rounded to this many bits a group before the integer dot product
 *
 * Every tier gives the same bits. Inputs that are not finite give what a float product would: an infinity
 * or NaN. Groups whose largest magnitude is below 1e-30 count as zero.
 */
LAQ_API int32_t laq_linear(const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type,
                           int64_t n_inputs, int64_t stride, void *const *y, const float *const *bias,
                           int32_t activation_bits);

/* out [n, n_columns] = rows of the source's matrix, in the source's order of columns, rounded to `type`.
 * stored_rows says where each lies: int64, in range. */
LAQ_API int32_t laq_rows(const laq_matrix *matrix, const int64_t *stored_rows, int64_t n, void *out,
                         int32_t type);

/* y [n_inputs, n_rows] = x S', added up in the order of elements; x and stride as in laq_linear, y of x's type. Checks
 * the matrix first, which is as fast. */
LAQ_API int32_t laq_outlier_product(const laq_outliers *outliers, const void *x, int32_t type, int64_t n_inputs,
                                    int64_t stride, void *y);

/* One operation of a recorded network; `data` holds the result first, then what it reads. */
enum {
    /* result[i] = f(a[i], b[i], c[i]); read as float32 if any of them is a float, as int64 otherwise */
    LAQ_COPY = 0, LAQ_NEGATE, LAQ_ABSOLUTE, LAQ_SQUARE, LAQ_SQRT, LAQ_RSQRT, LAQ_RECIPROCAL, LAQ_EXP, LAQ_COS, LAQ_SIN,
    LAQ_TANH, LAQ_SIGMOID, LAQ_SILU, LAQ_GELU, LAQ_GELU_TANH, LAQ_RELU, LAQ_NOT,
    LAQ_ADD, LAQ_SUBTRACT, LAQ_MULTIPLY, LAQ_DIVIDE, LAQ_POWER, LAQ_MINIMUM, LAQ_MAXIMUM,
    LAQ_LESS, LAQ_LESS_EQUAL, LAQ_EQUAL, LAQ_NOT_EQUAL, LAQ_AND, LAQ_OR,
    LAQ_WHERE,
    /* over the last axis, floats */
    LAQ_SUM, LAQ_MEAN, LAQ_SOFTMAX,
    LAQ_LAYER_NORM, /* (a - mean) / sqrt(variance + number) * b + c; b and c may be NULL */
    LAQ_COPY_AT,    /* result[b + i] = a[i] along axis `number`, b a single int64; details: int64 size of the axis */
    LAQ_GATHER,     /* rows of b that a, int64, names; details: int64 number of rows of b */
    LAQ_MATMUL,     /* a b; sizes: batches, rows, columns, what is added over; strides in the same order */
    LAQ_ATTENTION,  /* details: laq_attention; sizes: batches, heads, queries, keys; reads queries, keys, values */
    LAQ_LINEAR,     /* details: laq_product */
    LAQ_ROWS,       /* details: laq_lookup; reads int64 ids, all in a row */
    LAQ_OUTLIERS,   /* details: laq_outliers; sizes[0]: inputs, all in a row */
};

typedef struct {
    int32_t kind;
    int32_t types[4];
    int64_t sizes[4];      /* of the result, 1 for axes that it lacks; with a reduction of what is read */
    int64_t strides[4][4]; /* in elements, for each of `data` */
    void *data[4];
    double number;
    const void *details;
} laq_step;

typedef struct {
    int64_t width, value_width; /* of a query and a key, of a value */
    const void *mask;           /* LAQ_BOOL: attend where true; else added to the products; NULL: attend to all */
    int32_t mask_type;
    int64_t mask_strides[4];
    float scale;
} laq_attention;

typedef struct {
    const laq_matrix *matrices;
    int32_t n_matrices, type;
    const void *x;
    int64_t n_inputs, stride;
    void *const *y;
    const float *const *bias;
    int32_t activation_bits;
} laq_product;

typedef struct {
    const laq_matrix *matrix;
    const int32_t *row_index; /* where each row of the source is stored, or NULL */
    int64_t n;
} laq_lookup;

/* Run recorded operations one after the other; stops at the first that fails. */
LAQ_API int32_t laq_run(const laq_step *steps, int64_t n_steps);

/* A number format, and by how many eighths of an octave the scale of a group is tried smaller than the one that covers
 * all of it: first_step <= i < last_step. */
typedef struct {
    int32_t tag;                   /* as in laq_matrix; 0: absent */
    int32_t n_levels;              /* values of a code: 1 (absent) to 256 */
    int32_t first_step, last_step; /* 0 to 64; from -64 for all but integers */
    float terms[3];                /* of a trellis: v in steps of the scale has an error of a + c v^4 + d v^6 */
} laq_format;

/* A float matrix that is to be rounded, column by column of the weight: values[column * stride + row]. Whole tiles. */
typedef struct {
    int64_t n_rows, n_columns;   /* multiples of 16 and of the group size */
    int64_t stride;              /* elements from one column to the next */
    int32_t group_size;          /* 32, 64 or 128 */
    int32_t scale_format;
    const float *values;         /* finite */
    const float *column_weights; /* [n_columns] what a squared error costs */
    const float *floors;         /* [n_rows] smallest log step worth using, whole numbers of -320 to 240 */
    const laq_format *formats;
    int32_t n_formats;
    const uint8_t *palettes;     /* [28] for each row block, as in laq_matrix, or NULL if none is asked for */
    int64_t palette_stride;      /* bytes from those of one row block to the next; 0 if all have the same */
} laq_source;

/* How one group of columns is to be rounded, and what comes of it. */
typedef struct {
    const uint8_t *choices; /* [n_rows / 16] format of every tile, an index into formats */
    const float *factor;    /* [group_size, group_size] how errors spread over later columns, or NULL */
    uint8_t *codes;         /* [group_size, n_rows] */
    int16_t *scales;        /* [n_rows] log steps, or the bits of a float16 */
    float *zero_points;     /* [n_rows] */
    float *errors;          /* [group_size, n_rows] scaled by the factor's diagonal; not used without a factor */
} laq_rounding;

/* Least weighted squared error of every group at every format: errors [n_formats, n_groups, n_rows]. */
LAQ_API int32_t laq_errors(const laq_source *source, float *errors);

/* Search scales and zero points of one group of columns and round it. */
LAQ_API int32_t laq_round(const laq_source *source, const laq_rounding *rounding);

/* Where the codes of tiles lie: as rows of bytes, and packed. */
typedef struct {
    int64_t n_tiles;
    int32_t group_size;            /* 32, 64 or 128 */
    const uint8_t *bits;           /* [n_tiles] tags, as in laq_matrix */
    const int64_t *code_starts;    /* [n_tiles] first code of each tile */
    int64_t stride;                /* codes from one row to the next */
    const int64_t *payload_starts; /* [n_tiles] first byte of each tile's lines */
    const uint8_t *palettes;       /* as in laq_matrix; packing needs none */
} laq_tiles;

/* Codes to lines of bits. */
LAQ_API int32_t laq_pack(const laq_tiles *tiles, const uint8_t *codes, uint8_t *payload);
/* And back; where codes are looked up what they stand for, as bytes. */
LAQ_API int32_t laq_unpack(const laq_tiles *tiles, const uint8_t *payload, uint8_t *codes);

/* Read n bytes as fast as the machine can, with all threads; for benchmarks. Returns the xor of the first eight
 * bytes of every 64. */
LAQ_API uint64_t laq_read(const uint8_t *bytes, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
