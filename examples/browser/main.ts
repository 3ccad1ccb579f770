// A Treadle client in a web page, made from the published .proto alone: Connect over fetch.
//
// It streams a generation, scores a text, and shows errors with the fields at fault. A browser
// cannot stream a request, so a corpus is uploaded by another client: see examples/node.
import { Code, ConnectError, createClient, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-web';
import { SequenceService } from './generated/treadle/v1/sequence_pb.js';

const form = document.querySelector('form')!;
const result = document.querySelector('#result')!;
const fault = document.querySelector('#fault')!;

const asked = new URLSearchParams(location.search);
for (const name of ['server', 'model']) {
  const input = form.elements.namedItem(name) as HTMLInputElement;
  input.value = asked.get(name) ?? (name === 'server' ? 'http://127.0.0.1:8080' : '');
}

let running = new AbortController();

/** Returns what a field of the form holds. */
const field = (name: string) => new FormData(form).get(name) as string;

/** Returns a client for the server that the form names. */
function connect() {
  const authorize: Interceptor = (next) => (request) => {
    const token = field('token');
    if (token) request.header.set('Authorization', `Bearer ${token}`);
    return next(request);
  };
  const transport = createConnectTransport({ baseUrl: field('server'), interceptors: [authorize] });
  return createClient(SequenceService, transport);
}

/** Writes each piece of a text as it arrives. */
async function generate(signal: AbortSignal) {
  const request = { model: field('model'), prompt: field('text'), temperature: 0.8, seed: 1n };
  result.textContent = field('text');
  for await (const response of connect().generate(request, { signal })) {
    result.append(response.text);
    if (response.result) result.append(`\n(${response.result.newTokens} tokens)`);
  }
}

/** Writes how probable a text is. */
async function score(signal: AbortSignal) {
  const texts = [field('text')];
  const { scores } = await connect().score({ model: field('model'), texts }, { signal });
  result.textContent = `${scores[0].totalLogProbability.toFixed(2)} nats  ${texts[0]}`;
}

/** Returns an error's sentence and, of a request at fault, the fields. */
function describe(error: ConnectError) {
  // Each detail of google.rpc comes with a readable form next to its bytes.
  const violations = error.details.flatMap((detail) =>
    'debug' in detail && detail.type === 'google.rpc.BadRequest'
      ? ((detail.debug as { fieldViolations?: { field: string }[] }).fieldViolations ?? [])
      : [],
  );
  const fields = violations.map((violation) => violation.field).join(', ');
  return `${Code[error.code]}: ${error.rawMessage}${fields && ` (${fields})`}`;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  running.abort(); // leaving a stream ends its call on the server as well
  running = new AbortController();
  const { signal } = running;
  result.textContent = '';
  fault.textContent = '';
  form.ariaBusy = 'true';
  try {
    await (event.submitter?.id === 'score' ? score : generate)(signal);
  } catch (error) {
    if (!signal.aborted) fault.textContent = describe(ConnectError.from(error));
  } finally {
    if (!signal.aborted) form.ariaBusy = 'false';
  }
});

document.querySelector('#stop')!.addEventListener('click', () => {
  running.abort();
  form.ariaBusy = 'false';
});
