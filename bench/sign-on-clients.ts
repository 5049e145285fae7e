/**
 * The clients of `bench/sign-on.ts`, in a separate process. It receives a front door's port and tokens, signs on once
 * with each token, several at a time, and sends back how many milliseconds all sign-ons took together.
 */
import { connect } from "node:net";

/** A runtime accepts connections every 20 ms (seen with 1.0.85), so 1,000 sign-ons a second need over 20 at once. */
const AT_ONCE = 64;

export interface SignOns {
  port: number;
  tokens: readonly string[];
}

process.on("message", ({ port, tokens }: SignOns) => void signOnAll(port, tokens));

async function signOnAll(port: number, tokens: readonly string[]): Promise<void> {
  const start = performance.now();
  const waiting = tokens.values();
  const worker = async () => {
    for (const token of waiting) await signOn(port, token);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  process.send?.(performance.now() - start);
}

async function signOn(port: number, token: string): Promise<void> {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "connect", params: { token } });
  const socket = connect({ host: "127.0.0.1", port, noDelay: true });
  const answer = await new Promise<string>((resolve, reject) => {
    socket.once("error", reject);
    socket.once("data", (chunk) => resolve(String(chunk)));
    socket.write(`Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
  });
  socket.destroy();
  if (!answer.includes("protocolVersion")) throw new Error(answer);
}
