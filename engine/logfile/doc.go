// Package logfile keeps the output of one container in files, in the formats
// of Docker's log drivers json-file (byte for byte) and local (compact, with a
// record format of our own), rotates them, and reads them again: from the
// start, from the end, by time, and as they grow.
//
// A Log knows its readers: who follows is woken by the writer, across
// rotations, and no file is polled. What a killed daemon left half-written at
// the end of a file is cut off when the file is opened again.
package logfile
