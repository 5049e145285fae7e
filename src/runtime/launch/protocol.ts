import { FleetError, type Suggestion } from "../../errors.js";

/** The protocol versions that this fleet speaks. `gateway/policy/protocols.ts` has the front door's tables for each. */
export const SUPPORTED_VERSIONS: ReadonlySet<number> = new Set([3]);

/** The releases that speak each version. A client and a runtime must speak the same version. */
const RELEASES: Readonly<Record<number, { sdk: number; names: string }>> = {
  3: { sdk: 1, names: "SDK 1.x and CLI 1.0.112 or earlier" },
  4: { sdk: 2, names: "SDK 2.x and CLI 1.0.113 or later" },
};

/**
 * The error for a runtime of another protocol version. `version` comes from its answer; undefined if the answer has
 * none.
 */
export function runtimeMismatch(where: string, version: unknown, cause?: unknown): FleetError {
  const supported = [...SUPPORTED_VERSIONS];
  const isNewer = typeof version === "number" && version > Math.max(...supported);
  const what = version === undefined ? "an older version" : `version ${String(version)}`;
  return new FleetError(
    isNewer ? "FLEET_RUNTIME_TOO_NEW" : "FLEET_RUNTIME_TOO_OLD",
    `The runtime at ${where} speaks ${what} of the Copilot protocol; this fleet needs version ${supported.join(" or ")}. ${releases(supported, version)}`,
    { cause, suggestions: ["Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime."] },
  );
}

/**
 * The oldest release of the runtime that loses no reply when it is killed. Measured: 1.0.81 has a reply on disk when it
 * reports the end of the turn; 1.0.79, 1.0.80 and 1.0.81-0 up to 0.1 s later. `.ci/run` tests with this release.
 */
export const OLDEST_RUNTIME = "1.0.81";
/** The first release that names a prompt's message id in the `user.message` with which the prompt begins. */
const FIRST_WITH_PROMPT_IDS = "1.0.83";

/** Whether a runtime reports the message id of each prompt that it begins. @param version as the runtime reports it */
export function namesPrompts(version: unknown): boolean {
  return !isBefore(version, FIRST_WITH_PROMPT_IDS);
}

/** Refuses a runtime that is older than {@link OLDEST_RUNTIME}. @param version as the runtime reports it */
export function checkRuntimeVersion(where: string, version: string): void {
  if (!isBefore(version, OLDEST_RUNTIME)) return;
  throw new FleetError(
    "FLEET_RUNTIME_TOO_OLD",
    `The runtime at ${where} is version ${version}. The oldest version that this fleet supports is ${OLDEST_RUNTIME}.`,
    { suggestions: ["Remove runtime.path and COPILOT_CLI_PATH to use the bundled runtime."] },
  );
}

/** Whether a version precedes a release. False for a text that is not a version. Prereleases count as the release. */
function isBefore(version: unknown, release: string): boolean {
  if (typeof version !== "string" || !/^\d/.test(version)) return false;
  return version.localeCompare(release, "en", { numeric: true }) < 0;
}

/** The error for a client of another protocol version. `spoken` lists the versions that it could use here. */
export function clientMismatch(version: number, spoken: readonly number[]): FleetError {
  return new FleetError(
    "FLEET_PROTOCOL_UNSUPPORTED",
    `This front door speaks version ${spoken.join(" and ")} of the Copilot protocol; the client speaks version ${version}. ${releases(spoken, version)}`,
    {
      suggestions: spoken.flatMap((known): Suggestion[] => {
        const release = RELEASES[known];
        return release === undefined ? [] : [`npm install @github/copilot-sdk@${release.sdk}`];
      }),
    },
  );
}

function releases(spoken: readonly number[], version: unknown): string {
  const others = typeof version === "number" && !spoken.includes(version) ? [version] : [];
  return [...spoken, ...others]
    .flatMap((known) => {
      const release = RELEASES[known];
      return release === undefined ? [] : [`Version ${known} is spoken by ${release.names}.`];
    })
    .join(" ");
}
