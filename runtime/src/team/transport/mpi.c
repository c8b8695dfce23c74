/* What dnx needs of MPI, in functions of plain types: handles, constants and structs differ between MPI libraries.
   Calls are made by one thread at a time. Every function gives 0, or MPI's error code; see dnx_mpi_error. */

#include <mpi.h>
#include <stdlib.h>

static MPI_Comm world;

/* Begins; `rank` and `size` are this process and how many there are. -1: threads can't take turns in this library. */
int dnx_mpi_begin(int *rank, int *size) {
    int given = MPI_THREAD_SINGLE;
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &given);
    if (code != MPI_SUCCESS) return code;
    if (given < MPI_THREAD_SERIALIZED) return -1;
    code = MPI_Comm_dup(MPI_COMM_WORLD, &world);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(world, rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(world, size);
    return code;
}

/* Ends; every process calls it. */
int dnx_mpi_end(void) { return MPI_Finalize(); }

/* Begins to send bytes, which stay where they are until dnx_mpi_sent says so. */
int dnx_mpi_send(const void *bytes, int count, int to, int tag, void **request) {
    MPI_Request *made = malloc(sizeof *made);
    if (made == NULL) return MPI_ERR_NO_MEM;
    int code = MPI_Isend(bytes, count, MPI_BYTE, to, tag, world, made);
    if (code != MPI_SUCCESS) {
        free(made);
        return code;
    }
    *request = made;
    return MPI_SUCCESS;
}

/* Whether they were sent; the request is gone then. */
int dnx_mpi_sent(void *request, int *done) {
    int code = MPI_Test(request, done, MPI_STATUS_IGNORE);
    if (code == MPI_SUCCESS && *done) free(request);
    return code;
}

/* Looks for a message; if there is one, it is this process's to receive. */
int dnx_mpi_look(int from, int tag, int *found, int *count, void **message) {
    MPI_Message got;
    MPI_Status status;
    int code = MPI_Improbe(from, tag, world, found, &got, &status);
    if (code != MPI_SUCCESS || !*found) return code;
    code = MPI_Get_count(&status, MPI_BYTE, count);
    if (code != MPI_SUCCESS) return code;
    MPI_Message *kept = malloc(sizeof *kept);
    if (kept == NULL) return MPI_ERR_NO_MEM;
    *kept = got;
    *message = kept;
    return MPI_SUCCESS;
}

/* Receives a message that was found. */
int dnx_mpi_receive(void *bytes, int count, void *message) {
    int code = MPI_Mrecv(bytes, count, MPI_BYTE, message, MPI_STATUS_IGNORE);
    free(message);
    return code;
}

/* The words of an error code; `text` has room for `room` bytes. */
void dnx_mpi_error(int code, char *text, int room) {
    char words[MPI_MAX_ERROR_STRING];
    int length = 0;
    int at = 0;
    if (MPI_Error_string(code, words, &length) == MPI_SUCCESS) {
        for (; at < length && at < room - 1; at++) text[at] = words[at];
    }
    text[at] = 0;
}
