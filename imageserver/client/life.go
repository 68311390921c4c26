package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

func (c *Client) promote(ctx context.Context, name, alias string) (Image, string, error) {
	doing := "promoting " + name + " to " + alias
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stall.begin()
	answer, err := c.rpc.Promote(ctx, &pb.PromoteRequest{Name: name, Alias: alias})
	stall.end()
	if err != nil {
		return Image{}, "", c.failedName(ctx, doing, err)
	}
	one, err := fromWire(answer.GetImage())
	return one, answer.GetPrevious(), err
}

func (c *Client) expire(ctx context.Context, name string, digest object.Digest, expires time.Time) (Image, error) {
	doing := "setting when image " + name + " expires"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	request := &pb.SetExpiryRequest{Name: name}
	if !digest.IsZero() {
		request.Digest = digest[:]
	}
	if !expires.IsZero() {
		request.Expires = expires.UnixNano()
	}
	stall.begin()
	answer, err := c.rpc.SetExpiry(ctx, request)
	stall.end()
	if err != nil {
		return Image{}, c.failedName(ctx, doing, err)
	}
	return fromWire(answer.GetImage())
}

func (c *Client) retain(ctx context.Context, stream string, keep uint32, dryRun bool) ([]Due, error) {
	doing := "setting how many images " + stream + " keeps"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stall.begin()
	answer, err := c.rpc.SetRetention(ctx, &pb.SetRetentionRequest{Stream: stream, Keep: keep, DryRun: dryRun})
	stall.end()
	if err != nil {
		return nil, c.failedName(ctx, doing, err)
	}
	return dueFromWire(answer.GetDue())
}

func (c *Client) collectGarbage(ctx context.Context, grace time.Duration, dryRun bool, report func(Garbage)) (Garbage, error) {
	const doing = "collecting garbage"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	request := &pb.CollectGarbageRequest{DryRun: dryRun}
	if grace >= 0 {
		seconds := uint64((grace + time.Second - 1) / time.Second)
		request.GraceSeconds = &seconds
	}
	stream, err := c.rpc.CollectGarbage(ctx, request)
	if err != nil {
		return Garbage{}, c.failed(ctx, doing, err)
	}
	for {
		stall.begin()
		answer, err := stream.Recv()
		stall.end()
		if err == io.EOF {
			return Garbage{}, &Error{CodeWrongAnswer, doing, errors.New("the server did not say that it is done")}
		}
		if err != nil {
			return Garbage{}, c.failed(ctx, doing, err)
		}
		garbage := Garbage{Checked: answer.GetChecked(), Objects: answer.GetObjects(), Bytes: answer.GetBytes(), Recent: answer.GetRecent()}
		if answer.GetDone() {
			garbage.Images, err = dueFromWire(answer.GetImages())
			return garbage, err
		}
		if report != nil {
			report(garbage)
		}
	}
}

func dueFromWire(wires []*pb.DueImage) ([]Due, error) {
	due := []Due{} // "[]" in JSON, not "null"
	for _, wire := range wires {
		one, err := fromWire(wire.GetImage())
		if err != nil {
			return nil, err
		}
		due = append(due, Due{one, wire.GetReason()})
	}
	return due, nil
}
