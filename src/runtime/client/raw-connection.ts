import { FleetError, isFleetError, systemCode } from "../../base/errors.js";
import { showAddress } from "../launch/listen.js";
import { runtimeMismatch, SUPPORTED_VERSIONS } from "../launch/versions.js";
import { type Endpoint, RpcClient, RpcError } from "../wire/rpc-client.js";

/** An authenticated connection to one server without the SDK, because the import of the SDK is slow. */
export class RawConnection implements AsyncDisposable {
  readonly version: string;
  readonly protocolVersion: number;
  readonly #client: RpcClient;
  readonly #where: string;

  private constructor(client: RpcClient, where: string, greeting: Record<string, unknown>, protocolVersion: number) {
    const { version } = greeting;
    this.#client = client;
    this.#where = where;
    this.version = typeof version === "string" ? version : "unknown";
    this.protocolVersion = protocolVersion;
  }

  /**
   * Connects and sends the token, so the caller must have checked that the server's own process listens at the
   * endpoint. When the signal aborts, the connection closes. With `lasting`, the signal only ends the attempt to
   * connect.
   */
  static async open(endpoint: Endpoint, signal: AbortSignal, { lasting = false } = {}): Promise<RawConnection> {
    const where = showAddress({ host: endpoint.address, port: endpoint.port });
    const tooLate = () => unreachable(where, "did not answer in time", signal.reason);
    const dialled = RpcClient.dial(endpoint, { hello: { supportedTaskKinds: [] } }, signal);
    const { client, greeting } = await dialled.catch((error: unknown): never => {
      throw signal.aborted ? tooLate() : error instanceof RpcError ? refused(where, error) : whyEnded(where, error);
    });
    const { protocolVersion } = greeting;
    if (typeof protocolVersion !== "number" || !SUPPORTED_VERSIONS.has(protocolVersion)) {
      client.destroy();
      throw runtimeMismatch(where, protocolVersion ?? null);
    }
    if (!lasting) {
      const onAbort = () => client.destroy(tooLate());
      signal.addEventListener("abort", onAbort, { once: true });
      void client.ended.then(() => signal.removeEventListener("abort", onAbort));
    }
    return new RawConnection(client, where, greeting, protocolVersion);
  }

  get closed(): Promise<void> {
    return this.#client.ended;
  }

  get localPort(): number | undefined {
    return this.#client.localPort;
  }

  /** Sends one request. If the signal aborts first, the answer is dropped, and the connection stays open. */
  async request(method: string, params: unknown, signal?: AbortSignal): Promise<unknown> {
    try {
      return await this.#client.request(method, params, undefined, signal);
    } catch (error) {
      throw whyEnded(this.#where, error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const message = `The connection to the server at ${this.#where} is closed.`;
    this.#client.destroy(new FleetError("FLEET_SERVER_UNREACHABLE", message));
  }
}

const METHOD_NOT_FOUND = -32601;

function refused(where: string, refusal: RpcError): FleetError {
  if (refusal.rpcCode === METHOD_NOT_FOUND) return runtimeMismatch(where, undefined, refusal);
  return unreachable(where, `refused the connection: ${refusal.message}`, refusal);
}

/** Returns the error for a request whose connection ended. Returns any other error unchanged. */
function whyEnded(where: string, error: unknown): unknown {
  if (!isFleetError(error, "FLEET_SERVER_LOST")) return error;
  const { cause } = error;
  if (cause === undefined) return unreachable(where, "closed the connection");
  if (isFleetError(cause)) return cause;
  const isOfSocket = cause instanceof Error && systemCode(cause) !== undefined;
  const reason = isOfSocket ? `cannot be reached (${cause.message})` : "does not speak the Copilot protocol";
  return unreachable(where, reason, cause);
}

function unreachable(where: string, reason: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_SERVER_UNREACHABLE", `The server at ${where} ${reason}.`, { cause });
}

/** Whether a session is in a turn, as its server reports. Null if the server does not have the session in memory. */
export async function isInTurn(
  connection: Pick<RawConnection, "request">,
  sessionId: string,
  signal?: AbortSignal,
): Promise<boolean | null> {
  const activity = await unlessRefused(connection.request("session.metadata.activity", { sessionId }, signal));
  return activity === null ? null : (activity as { hasActiveWork?: unknown }).hasActiveWork === true;
}

/**
 * The server's answer. Null if the server answers with an error, for example because it does not have the session in
 * memory.
 */
export async function unlessRefused(answer: Promise<unknown>): Promise<unknown> {
  return await answer.catch((error: unknown) => {
    if (error instanceof RpcError) return null;
    throw error;
  });
}
