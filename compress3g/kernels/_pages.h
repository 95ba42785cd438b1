/* Pages of vectors: result i belongs to page p = page[i], or i itself, and that page owns the
 * vectors offset[p] .. offset[p + 1] - 1. Mirrors `_Pages` of _pages.py.
 *
 * Everything read from a file is checked here, page by page, just before it is used as an index:
 * it costs a few percent, holds even when the file is changed underneath, and needs no pass of its
 * own over the whole index. Python turns a refused page into one line that says what is wrong.
 */
#ifndef COMPRESS3G_PAGES_H
#define COMPRESS3G_PAGES_H
#include "_isa.h"

typedef uint16_t u16;
typedef uint64_t u64;

typedef struct {
    const i64 *offset;
    const i64 *page;   /* null: all pages in order */
    const void *codes; /* null: no codes */
    i64 vectors;       /* length of the streams */
    i64 count;         /* number of pages */
    i64 rows;          /* codes must be below */
    i64 wide;          /* 0: u8 codes, 1: u16 */
} Pages;

/* First vector and number of vectors of result i; 0 when offsets or page numbers are impossible. */
INLINE int page_span(const Pages *pages, i64 i, i64 *first, i64 *n)
{
    const i64 page = pages->page ? pages->page[i] : i;
    if (page < 0 || page >= pages->count) return 0;
    const i64 begin = pages->offset[page], end = pages->offset[page + 1];
    if (begin < 0 || end < begin || end > pages->vectors) return 0;
    *first = begin;
    *n = end - begin;
    return 1;
}

INLINE i64 code_at(const void *codes, int wide, i64 i)
{
    return wide ? ((const u16 *)codes)[i] : ((const u8 *)codes)[i];
}

/* Whether all n codes from `first` on are rows of the table; plain loops that compilers widen. */
INLINE int codes_fit(const Pages *pages, i64 first, i64 n)
{
    if (pages->wide) {
        const u16 *codes = (const u16 *)pages->codes + first;
        u16 most = 0;
        if (pages->rows > 65535) return 1;
        for (i64 j = 0; j < n; j++) most = codes[j] > most ? codes[j] : most;
        return n == 0 || most < pages->rows;
    }
    const u8 *codes = (const u8 *)pages->codes + first;
    u8 most = 0;
    if (pages->rows > 255) return 1;
    for (i64 j = 0; j < n; j++) most = codes[j] > most ? codes[j] : most;
    return n == 0 || most < pages->rows;
}
#endif
