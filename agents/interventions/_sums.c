/* sums[k * columns + c] = |matrices[k][c]| + |matrices[k][columns + c]| + ... over the rows[k] rows of each of n
   matrices. Four rows are added at a time; nothing else determines the order, and with it the rounding. */
#include <math.h>
#include <stddef.h>

void row_sums(int n, const float *const *matrices, const ptrdiff_t *rows, ptrdiff_t columns, float *sums)
{
    for (int k = 0; k < n; k++) {
        float *restrict sum = sums + k * columns;
        const float *row = matrices[k];
        ptrdiff_t left = rows[k];
        for (ptrdiff_t c = 0; c < columns; c++)
            sum[c] = 0;
        for (; left >= 4; left -= 4, row += 4 * columns) {
            const float *second = row + columns, *third = second + columns, *fourth = third + columns;
            for (ptrdiff_t c = 0; c < columns; c++)
                sum[c] += (fabsf(row[c]) + fabsf(second[c])) + (fabsf(third[c]) + fabsf(fourth[c]));
        }
        for (; left > 0; left--, row += columns)
            for (ptrdiff_t c = 0; c < columns; c++)
                sum[c] += fabsf(row[c]);
    }
}
