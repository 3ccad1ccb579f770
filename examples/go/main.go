// A Treadle client in Go, made from the published .proto alone.
//
//	make example-go                    (generates the code, builds, and runs it against a server)
//	treadle-example [ADDRESS [CORPUS]]
//
// TREADLE_CA_FILE names the certificate authority of a server with TLS, and TREADLE_TOKEN_FILE the
// file of the token to send there.
//
// It trains a small model on a list of names, one a line, and prints the progress. Then it
// generates names that begin with given letters, scores some, and shows how an error arrives.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "treadle.example/treadlev1"
)

const (
	model      = "go-names"
	chunkBytes = 256 << 10 // the contract allows up to 1 MiB
)

func main() {
	address := "127.0.0.1:50051"
	corpus := "examples/data/names.txt"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if len(os.Args) > 2 {
		corpus = os.Args[2]
	}
	if err := run(context.Background(), address, corpus); err != nil {
		fmt.Fprintln(os.Stderr, describe(err))
		os.Exit(1)
	}
}

func run(ctx context.Context, address, corpus string) error {
	options, err := security()
	if err != nil {
		return err
	}
	connection, err := grpc.Dial(address, options...)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewSequenceServiceClient(connection)

	trained, err := train(ctx, client, corpus)
	if err != nil {
		return err
	}
	fmt.Printf("%s version %d: %d steps\n", trained.Name, trained.Version, trained.Training.Steps)
	for seed, prompt := range []string{"an", "be", "jo", "mar"} {
		if err := generate(ctx, client, prompt, uint64(seed)); err != nil {
			return err
		}
	}
	if err := score(ctx, client, "maria", "airam"); err != nil {
		return err
	}

	// An expected error: its code says what kind, its details name the field.
	_, err = client.Score(ctx, &pb.ScoreRequest{Model: model, Texts: []string{"m4ria"}})
	if err == nil {
		return errors.New("the server has scored a text with an unknown symbol")
	}
	fmt.Println("refused:", describe(err))
	return nil
}

// train uploads a corpus while it reads the events of the job, and returns the model.
func train(ctx context.Context, client pb.SequenceServiceClient, corpus string) (*pb.Model, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the call where the upload fails
	call, err := client.Train(ctx)
	if err != nil {
		return nil, err
	}
	uploaded := make(chan error, 1)
	go func() {
		err := upload(call, corpus)
		if err != nil {
			cancel()
		}
		uploaded <- err
	}()
	trained, err := follow(call)
	if err != nil {
		// The end of the call makes the upload fail with io.EOF; the call's own error says more.
		if fault := <-uploaded; fault != nil && !errors.Is(fault, io.EOF) {
			return nil, fault
		}
		return nil, err
	}
	return trained, nil
}

// upload sends the spec, the corpus chunk by chunk as fast as the server takes it, and its end.
func upload(call pb.SequenceService_TrainClient, corpus string) error {
	file, err := os.Open(corpus)
	if err != nil {
		return err
	}
	defer file.Close()
	steps := uint64(300)
	samples := uint32(0)
	spec := &pb.TrainSpec{
		Model:   model,
		Data:    &pb.DataSpec{Layout: pb.CorpusLayout_CORPUS_LAYOUT_LINES},
		Network: &pb.NetworkSpec{Cell: pb.Cell_CELL_GRU, HiddenSize: 64},
		Limits:  &pb.LimitsSpec{MaxSteps: &steps},
		Report:  &pb.ReportSpec{SampleTokens: &samples},
	}
	if err := call.Send(&pb.TrainRequest{Message: &pb.TrainRequest_Spec{Spec: spec}}); err != nil {
		return err
	}
	size := uint64(0)
	chunk := make([]byte, chunkBytes)
	for {
		count, err := file.Read(chunk)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		size += uint64(count)
		part := &pb.TrainRequest_CorpusChunk{CorpusChunk: chunk[:count]}
		if err := call.Send(&pb.TrainRequest{Message: part}); err != nil {
			return err
		}
	}
	// Without it, the server does not train.
	end := &pb.TrainRequest_CorpusEnd{CorpusEnd: &pb.CorpusEnd{SizeBytes: size}}
	if err := call.Send(&pb.TrainRequest{Message: end}); err != nil {
		return err
	}
	return call.CloseSend()
}

// follow prints a training run from its first event to its model.
func follow(call pb.SequenceService_TrainClient) (*pb.Model, error) {
	var trained *pb.Model
	for {
		event, err := call.Recv()
		if err == io.EOF {
			return trained, nil
		}
		if err != nil {
			return nil, err
		}
		if started := event.GetStarted(); started != nil {
			fmt.Printf("%d tokens, %d parameters\n", started.TrainTokens, started.ParameterCount)
			for _, notice := range started.Notices {
				fmt.Println("note:", notice)
			}
		} else if progress := event.GetProgress(); progress != nil {
			fmt.Printf("step %d  loss %.3f", progress.Step, progress.TrainLoss)
			if progress.ValidLoss != nil {
				fmt.Printf("  valid %.3f", *progress.ValidLoss)
			}
			fmt.Println()
		} else if completed := event.GetCompleted(); completed != nil {
			trained = completed
		}
	}
}

// generate prints each piece of a text as it arrives.
func generate(ctx context.Context, client pb.SequenceServiceClient, prompt string, seed uint64) error {
	temperature := 0.8
	longest := uint32(20)
	call, err := client.Generate(ctx, &pb.GenerateRequest{
		Model: model, Prompt: prompt, Temperature: &temperature, Seed: &seed, MaxNewTokens: &longest,
	})
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	out.WriteString(prompt)
	for {
		response, err := call.Recv()
		if err == io.EOF {
			return out.WriteByte('\n')
		}
		if err != nil {
			return err
		}
		out.WriteString(response.Text)
		out.Flush()
	}
}

// score prints how probable texts are.
func score(ctx context.Context, client pb.SequenceServiceClient, texts ...string) error {
	response, err := client.Score(ctx, &pb.ScoreRequest{Model: model, Texts: texts})
	if err != nil {
		return err
	}
	for number, score := range response.Scores {
		fmt.Printf("%.2f nats  %s\n", score.TotalLogProbability, texts[number])
	}
	return nil
}

// describe returns an error's sentence; of a status with its code and the fields at fault.
func describe(err error) string {
	fault, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	var fields []string
	for _, detail := range fault.Details() {
		if request, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range request.FieldViolations {
				fields = append(fields, violation.Field)
			}
		}
	}
	text := fmt.Sprintf("%s: %s", fault.Code(), fault.Message())
	if len(fields) > 0 {
		text += " (" + strings.Join(fields, ", ") + ")"
	}
	return text
}

// security returns how to connect: with TLS and a token where the environment names their files.
func security() ([]grpc.DialOption, error) {
	ca := os.Getenv("TREADLE_CA_FILE")
	tokenFile := os.Getenv("TREADLE_TOKEN_FILE")
	if ca == "" {
		if tokenFile != "" {
			return nil, errors.New("a token needs TLS: set TREADLE_CA_FILE as well")
		}
		return []grpc.DialOption{grpc.WithInsecure()}, nil
	}
	tls, err := credentials.NewClientTLSFromFile(ca, "")
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(tls)}
	if tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenOf(tokenFile)))
	}
	return options, nil
}

// tokenOf is the file of a token, which is read again for each call: it may be renewed.
type tokenOf string

func (file tokenOf) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(file))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

func (tokenOf) RequireTransportSecurity() bool { return true }
