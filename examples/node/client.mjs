// A Treadle client in Node.js that loads the published .proto at run time: no generated code.
//
//   npm ci
//   node client.mjs [ADDRESS [CORPUS]]
//
// TREADLE_CA_FILE names the certificate authority of a server with TLS, and TREADLE_TOKEN_FILE the
// file of the token to send there.
//
// It trains a small model on a list of names, one a line, prints the progress, and then
// generates names that begin with given letters.
import { once } from 'node:events';
import { createReadStream, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const [address = '127.0.0.1:50051', corpus = here('../data/names.txt')] = process.argv.slice(2);
const MODEL = 'node-names';
const CHUNK_BYTES = 256 * 1024; // the contract allows up to 1 MiB

const definition = protoLoader.loadSync('treadle/v1/sequence.proto', {
  includeDirs: [here('../../proto')],
  keepCase: true, // hidden_size, as in the .proto
  longs: Number, // exact up to 2^53, which is enough for counts
  enums: String,
  defaults: true, // unset fields are there, with their zero
  oneofs: true, // event.event is "state", "started", "progress" or "completed"
});
const { SequenceService } = grpc.loadPackageDefinition(definition).treadle.v1;

/** Sends the spec, the corpus chunk by chunk as fast as the server takes it, and its end. */
async function upload(call, spec, file) {
  try {
    call.write({ spec });
    let size = 0;
    for await (const chunk of createReadStream(file, { highWaterMark: CHUNK_BYTES })) {
      size += chunk.length;
      if (!call.write({ corpus_chunk: chunk })) await once(call, 'drain');
    }
    call.end({ corpus_end: { size_bytes: size } }); // without it, the server does not train
  } catch (error) {
    call.cancel(); // otherwise the server would wait for the rest
    throw error;
  }
}

/** Follows a training run from its first event to its model. */
async function follow(call) {
  let model;
  for await (const { event, started, progress, completed } of call) {
    if (event === 'started') {
      console.log(`${started.train_tokens} tokens, ${started.parameter_count} parameters`);
      started.notices.forEach((notice) => console.log(`note: ${notice}`));
    } else if (event === 'progress') {
      const valid = progress._valid_loss ? `  valid ${progress.valid_loss.toFixed(3)}` : '';
      console.log(`step ${progress.step}  loss ${progress.train_loss.toFixed(3)}${valid}`);
    } else if (event === 'completed') {
      model = completed;
    }
  }
  return model;
}

/** Generates a text and prints each piece as it arrives. */
async function generate(client, request) {
  process.stdout.write(request.prompt);
  let result;
  for await (const response of client.Generate(request)) {
    process.stdout.write(response.text);
    if (response.result) result = response.result;
  }
  process.stdout.write('\n');
  return result;
}

/** Returns how to connect: with TLS and a token where the environment names their files. */
function credentials({ TREADLE_CA_FILE: ca, TREADLE_TOKEN_FILE: tokenFile }) {
  if (!ca && tokenFile) throw new Error('a token needs TLS: set TREADLE_CA_FILE as well');
  if (!ca) return grpc.credentials.createInsecure();
  const tls = grpc.credentials.createSsl(readFileSync(ca));
  if (!tokenFile) return tls;
  const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => {
    const metadata = new grpc.Metadata();
    metadata.set('authorization', `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`);
    done(null, metadata);
  });
  return grpc.credentials.combineChannelCredentials(tls, bearer);
}

// gRPC obeys $http_proxy even for this machine, where no proxy can help.
const local = /^(localhost|127\.|\[::1\]|unix:)/.test(address);
const options = local ? { 'grpc.enable_http_proxy': 0 } : {};
const client = new SequenceService(address, credentials(process.env), options);
try {
  const spec = {
    model: MODEL,
    data: { layout: 'CORPUS_LAYOUT_LINES' },
    network: { cell: 'CELL_GRU', hidden_size: 64 },
    limits: { max_steps: 300 },
    report: { sample_tokens: 0 },
  };
  const call = client.Train();
  const [model] = await Promise.all([follow(call), upload(call, spec, corpus)]);
  console.log(`${model.name} version ${model.version}: ${model.training.steps} steps`);
  for (const [seed, prompt] of ['an', 'be', 'jo', 'mar'].entries()) {
    await generate(client, { model: MODEL, prompt, temperature: 0.8, seed, max_new_tokens: 20 });
  }
} catch (error) {
  console.error(error.details ?? error.message);
  process.exitCode = 1;
} finally {
  client.close();
}
