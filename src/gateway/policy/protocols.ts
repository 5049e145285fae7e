import { clientMismatch, runtimeMismatch } from "../../runtime/launch/protocol.js";
import { handlingOf, isKnownMethod } from "./methods.js";
import { whyRefused } from "./refused-methods.js";
import { APART_OPTIONS, checkOptions, sessionParams } from "./settings.js";

/**
 * One version of the protocol, with its tables of methods and settings. Each client and each server has the protocol of
 * the version that it speaks.
 */
export interface Protocol {
  readonly version: number;
  readonly handlingOf: typeof handlingOf;
  readonly isKnownMethod: typeof isKnownMethod;
  readonly whyRefused: typeof whyRefused;
  readonly sessionParams: typeof sessionParams;
  /** The parameters of the `session.options.update` that follows on a shared server. */
  readonly apartOptions: typeof APART_OPTIONS;
  readonly checkOptions: typeof checkOptions;
}

/** The protocols by version. The versions are those of `SUPPORTED_VERSIONS` in `runtime/launch/protocol.ts`. */
export const PROTOCOLS: ReadonlyMap<number, Protocol> = new Map([
  [
    3,
    {
      version: 3,
      handlingOf,
      isKnownMethod,
      whyRefused,
      sessionParams,
      apartOptions: APART_OPTIONS,
      checkOptions,
    },
  ],
]);

/** SDK 1.x names no version in `connect`. */
const UNNAMED_VERSION = 3;

/**
 * The protocol of a client.
 *
 * @param named the `protocolVersion` in its `connect`
 */
export function clientProtocol(named: unknown, protocols = PROTOCOLS): Protocol {
  const version = typeof named === "number" ? named : UNNAMED_VERSION;
  const protocol = protocols.get(version);
  if (protocol === undefined) throw clientMismatch(version, [...protocols.keys()]);
  return protocol;
}

/**
 * The protocol of a server.
 *
 * @param answered the `protocolVersion` in its answer to `connect`
 */
export function serverProtocol(where: string, answered: unknown): Protocol {
  const protocol = typeof answered === "number" ? PROTOCOLS.get(answered) : undefined;
  if (protocol === undefined) throw runtimeMismatch(where, answered ?? null);
  return protocol;
}

/** Requires that client and server speak the same version, because the front door does not translate requests. */
export function checkSameProtocol(client: Protocol, server: Protocol): void {
  if (client.version !== server.version) throw clientMismatch(client.version, [server.version]);
}
