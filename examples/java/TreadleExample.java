// A Treadle client in Java, made from the published .proto alone.
//
//   make example-java                  (generates the code, builds, and runs it against a server)
//   treadle-example [ADDRESS [CORPUS]]
//
// TREADLE_CA_FILE names the certificate authority of a server with TLS, and TREADLE_TOKEN_FILE the
// file of the token to send there.
//
// It trains a small model on a list of names, one a line, and prints the progress. Then it
// generates names that begin with given letters, scores some, and shows how an error arrives.

import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import treadle.v1.Sequence.Cell;
import treadle.v1.Sequence.CorpusEnd;
import treadle.v1.Sequence.CorpusLayout;
import treadle.v1.Sequence.DataSpec;
import treadle.v1.Sequence.GenerateRequest;
import treadle.v1.Sequence.JobEvent;
import treadle.v1.Sequence.LimitsSpec;
import treadle.v1.Sequence.Model;
import treadle.v1.Sequence.NetworkSpec;
import treadle.v1.Sequence.ReportSpec;
import treadle.v1.Sequence.ScoreRequest;
import treadle.v1.Sequence.TextScore;
import treadle.v1.Sequence.TrainRequest;
import treadle.v1.Sequence.TrainSpec;
import treadle.v1.Sequence.TrainingProgress;
import treadle.v1.SequenceServiceGrpc;

public final class TreadleExample {
  private static final String MODEL = "java-names";
  private static final int CHUNK_BYTES = 256 << 10; // the contract allows up to 1 MiB

  public static void main(String[] arguments) throws InterruptedException {
    String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    Path corpus = Path.of(arguments.length > 1 ? arguments[1] : "examples/data/names.txt");
    ManagedChannel channel = null;
    int code = 0;
    try {
      ManagedChannelBuilder<?> builder = Grpc.newChannelBuilder(address, security());
      if (address.matches("(localhost|127\\.|\\[::1]).*")) {
        builder.proxyDetector(server -> null); // no proxy can reach this machine's own servers
      }
      channel = builder.build();
      run(channel, corpus);
    } catch (StatusRuntimeException error) {
      System.err.println(describe(error));
      code = 1;
    } catch (IOException | IllegalArgumentException | UnsupportedOperationException error) {
      // The last one: no TLS library that can agree on HTTP/2.
      System.err.println(error.getMessage());
      code = 1;
    } finally {
      if (channel != null) {
        channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
      }
    }
    System.exit(code);
  }

  private static void run(ManagedChannel channel, Path corpus) throws IOException {
    SequenceServiceGrpc.SequenceServiceStub calls =
        SequenceServiceGrpc.newStub(channel).withCallCredentials(token());
    SequenceServiceGrpc.SequenceServiceBlockingStub blocking =
        SequenceServiceGrpc.newBlockingStub(channel).withCallCredentials(token());

    Model model = new Training(corpus).run(calls);
    System.out.printf(
        "%s version %d: %d steps%n",
        model.getName(), model.getVersion(), model.getTraining().getSteps());

    int seed = 0;
    for (String prompt : List.of("an", "be", "jo", "mar")) {
      GenerateRequest request =
          GenerateRequest.newBuilder()
              .setModel(MODEL)
              .setPrompt(prompt)
              .setTemperature(0.8)
              .setSeed(seed++)
              .setMaxNewTokens(20)
              .build();
      System.out.print(prompt);
      blocking.generate(request).forEachRemaining(piece -> System.out.print(piece.getText()));
      System.out.println();
    }

    List<String> texts = List.of("maria", "airam");
    ScoreRequest request = ScoreRequest.newBuilder().setModel(MODEL).addAllTexts(texts).build();
    int number = 0;
    for (TextScore score : blocking.score(request).getScoresList()) {
      System.out.printf(
          Locale.ROOT, "%.2f nats  %s%n", score.getTotalLogProbability(), texts.get(number++));
    }

    // An expected error: its code says what kind, its details name the field.
    try {
      blocking.score(ScoreRequest.newBuilder().setModel(MODEL).addTexts("m4ria").build());
      throw new IllegalArgumentException("the server has scored a text with an unknown symbol");
    } catch (StatusRuntimeException error) {
      if (error.getStatus().getCode() != Status.Code.INVALID_ARGUMENT) {
        throw error;
      }
      System.out.println("refused: " + describe(error));
    }
  }

  /** Uploads a corpus while the events of its job arrive, which another thread prints. */
  private static final class Training implements ClientResponseObserver<TrainRequest, JobEvent> {
    private final Path corpus;
    private final CompletableFuture<Model> result = new CompletableFuture<>();
    private ClientCallStreamObserver<TrainRequest> call;
    private Model model;

    Training(Path corpus) {
      this.corpus = corpus;
    }

    Model run(SequenceServiceGrpc.SequenceServiceStub calls) throws IOException {
      try (InputStream file = Files.newInputStream(corpus)) {
        calls.train(this);
        upload(file);
      } catch (IOException error) {
        if (call != null) {
          call.cancel("the corpus cannot be read", error); // the server would wait for the rest
        }
        throw new IOException("cannot read the corpus: " + error, error);
      }
      try {
        return result.join();
      } catch (CompletionException error) {
        if (error.getCause() instanceof StatusRuntimeException) {
          throw (StatusRuntimeException) error.getCause();
        }
        throw Status.fromThrowable(error.getCause()).asRuntimeException();
      }
    }

    /** Sends the spec, the corpus chunk by chunk as fast as the server takes it, and its end. */
    private void upload(InputStream file) throws IOException {
      TrainSpec spec =
          TrainSpec.newBuilder()
              .setModel(MODEL)
              .setData(DataSpec.newBuilder().setLayout(CorpusLayout.CORPUS_LAYOUT_LINES))
              .setNetwork(NetworkSpec.newBuilder().setCell(Cell.CELL_GRU).setHiddenSize(64))
              .setLimits(LimitsSpec.newBuilder().setMaxSteps(300))
              .setReport(ReportSpec.newBuilder().setSampleTokens(0))
              .build();
      send(TrainRequest.newBuilder().setSpec(spec).build());
      long size = 0;
      byte[] chunk = file.readNBytes(CHUNK_BYTES);
      while (chunk.length > 0 && !result.isDone()) {
        size += chunk.length;
        send(TrainRequest.newBuilder().setCorpusChunk(ByteString.copyFrom(chunk)).build());
        chunk = file.readNBytes(CHUNK_BYTES);
      }
      // Without it, the server does not train.
      CorpusEnd end = CorpusEnd.newBuilder().setSizeBytes(size).build();
      send(TrainRequest.newBuilder().setCorpusEnd(end).build());
      if (!result.isDone()) {
        call.onCompleted();
      }
    }

    /** Sends a message once there is room for it; none after the end of the call. */
    private synchronized void send(TrainRequest request) {
      try {
        while (!call.isReady() && !result.isDone()) {
          wait();
        }
        if (!result.isDone()) {
          call.onNext(request);
        }
      } catch (InterruptedException error) {
        Thread.currentThread().interrupt();
        call.cancel("interrupted", error);
      }
    }

    private synchronized void wake() {
      notifyAll();
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<TrainRequest> call) {
      this.call = call;
      call.setOnReadyHandler(this::wake);
    }

    @Override
    public void onNext(JobEvent event) {
      switch (event.getEventCase()) {
        case STARTED:
          System.out.printf(
              "%d tokens, %d parameters%n",
              event.getStarted().getTrainTokens(), event.getStarted().getParameterCount());
          event.getStarted().getNoticesList().forEach(note -> System.out.println("note: " + note));
          break;
        case PROGRESS:
          TrainingProgress progress = event.getProgress();
          System.out.printf(
              Locale.ROOT, "step %d  loss %.3f", progress.getStep(), progress.getTrainLoss());
          if (progress.hasValidLoss()) {
            System.out.printf(Locale.ROOT, "  valid %.3f", progress.getValidLoss());
          }
          System.out.println();
          break;
        case COMPLETED:
          model = event.getCompleted();
          break;
        default: // states, and events of newer servers
      }
    }

    @Override
    public void onError(Throwable error) {
      result.completeExceptionally(error);
      wake();
    }

    @Override
    public void onCompleted() {
      result.complete(model);
      wake();
    }
  }

  /** Returns an error's code and sentence, and the fields at fault. */
  private static String describe(StatusRuntimeException error) {
    List<String> fields = new ArrayList<>();
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    if (status != null) {
      for (com.google.protobuf.Any detail : status.getDetailsList()) {
        try {
          if (detail.is(BadRequest.class)) {
            detail
                .unpack(BadRequest.class)
                .getFieldViolationsList()
                .forEach(violation -> fields.add(violation.getField()));
          }
        } catch (InvalidProtocolBufferException damaged) {
          // the sentence says enough
        }
      }
    }
    String names = fields.isEmpty() ? "" : " (" + String.join(", ", fields) + ")";
    Throwable cause = error.getStatus().getCause(); // of a connection that failed
    String sentence = cause == null ? error.getStatus().getDescription() : cause.getMessage();
    return error.getStatus().getCode() + ": " + sentence + names;
  }

  /** Returns how to connect: with TLS where the environment names a certificate authority. */
  private static ChannelCredentials security() throws IOException {
    String ca = System.getenv("TREADLE_CA_FILE");
    if (ca != null) {
      return TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
    }
    if (System.getenv("TREADLE_TOKEN_FILE") != null) {
      throw new IllegalArgumentException("a token needs TLS: set TREADLE_CA_FILE as well");
    }
    return InsecureChannelCredentials.create();
  }

  /** Returns what sends the token; its file is read for each call, since it may be renewed. */
  private static CallCredentials token() {
    String file = System.getenv("TREADLE_TOKEN_FILE");
    if (file == null) {
      return null;
    }
    return new CallCredentials() {
      @Override
      public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier to) {
        Metadata headers = new Metadata();
        try {
          headers.put(
              Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER),
              "Bearer " + Files.readString(Path.of(file)).strip());
          to.apply(headers);
        } catch (IOException error) {
          to.fail(Status.UNAUTHENTICATED.withDescription(file + " cannot be read"));
        }
      }

      @Override
      public void thisUsesUnstableApi() {}
    };
  }

  private TreadleExample() {}
}
