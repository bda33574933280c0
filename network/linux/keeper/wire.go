package keeper

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds a message: the names of one network with some hundred
	// thousand endpoints, which is the most that can't be told in parts.
	maxMessage = 64 << 20
	// maxFiles is how many files go with a message, less than the kernel's 253.
	maxFiles   = 128
	lengthSize = 4
)

var (
	errLength = errors.New("a message is longer than any may be")
	errFiles  = errors.New("a message has more files than any may have")
)

// wire carries messages. One goroutine sends and one receives at a time.
type wire struct{ c *net.UnixConn }

// send sends a message with files, which stay the caller's. deadline is the zero
// time for none.
func (w wire) send(v any, deadline time.Time, files ...int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return errLength
	}
	b := append(binary.BigEndian.AppendUint32(make([]byte, 0, lengthSize+len(body)), uint32(len(body))), body...)
	if err := w.c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	n, _, err := w.c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) { // the files went with what went
		_, err = w.c.Write(b[n:])
	}
	return err
}

// receive reads the next message into v. The files are the caller's, also on error.
func (w wire) receive(v any) (files []int, err error) {
	var head [lengthSize]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, size, flags, _, err := w.c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	if files, err = rights(oob[:size]); err != nil {
		return files, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, errFiles
	}
	if n == 0 {
		return files, io.EOF
	}
	if _, err := io.ReadFull(w.c, head[n:]); err != nil {
		return files, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxMessage {
		return files, errLength
	}
	var body bytes.Buffer // grows with what comes, not with what is announced
	if _, err := io.CopyN(&body, w.c, int64(length)); err != nil {
		return files, err
	}
	if err := json.Unmarshal(body.Bytes(), v); err != nil {
		return files, fmt.Errorf("a message that can't be read: %w", err)
	}
	return files, nil
}

// rights are the files in control messages.
func rights(oob []byte) (files []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, os.NewSyscallError("recvmsg", err)
		}
		files = append(files, more...)
	}
	return files, nil
}

func closeFiles(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd)
	}
}
