import { FleetError } from "../errors.js";

/** The protocol version this fleet speaks; the SDK it ships with refuses any other. */
export const PROTOCOL_VERSION = 3;

/** The releases that speak each version. A client and a runtime understand each other only with the same one. */
const RELEASES: Readonly<Record<number, string>> = {
  3: "SDK 1.x and CLI 1.0.112 or earlier",
  4: "SDK 2.x and CLI 1.0.113 or later",
};

/** Refuses a runtime that speaks another protocol version. `version` is what it answered; undefined: nothing. */
export function runtimeMismatch(where: string, version: unknown, cause?: unknown): FleetError {
  const isNewer = typeof version === "number" && version > PROTOCOL_VERSION;
  const what = version === undefined ? "an older version" : `version ${String(version)}`;
  return new FleetError(
    isNewer ? "FLEET_RUNTIME_TOO_NEW" : "FLEET_RUNTIME_TOO_OLD",
    `The runtime at ${where} speaks ${what} of the Copilot protocol; this fleet needs version ${PROTOCOL_VERSION}. ${releases(version)}`,
    { cause, suggestions: ["Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime."] },
  );
}

/**
 * Refuses a client that names another protocol version in its `connect`. A client that names none finds the version in
 * the answer.
 *
 * @throws FleetError `FLEET_PROTOCOL_UNSUPPORTED`.
 */
export function checkClientProtocol(version: unknown): void {
  if (typeof version !== "number" || version === PROTOCOL_VERSION) return;
  throw new FleetError(
    "FLEET_PROTOCOL_UNSUPPORTED",
    `This front door speaks version ${PROTOCOL_VERSION} of the Copilot protocol; the client speaks version ${version}. ${releases(version)}`,
    { suggestions: ["npm install @github/copilot-sdk@1"] },
  );
}

function releases(version: unknown): string {
  const others = typeof version === "number" && version !== PROTOCOL_VERSION ? [version] : [];
  return [PROTOCOL_VERSION, ...others]
    .flatMap((known) => (RELEASES[known] === undefined ? [] : `Version ${known} is spoken by ${RELEASES[known]}.`))
    .join(" ");
}
