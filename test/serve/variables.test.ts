import { expect, it } from "vitest";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";

it("serve names all ignored variables in one warning before it serves", async () => {
  const fleet = await faultFleet();
  const slips = { COPILOTFLEET_HOST_NMAE: "h1", COPILOTFLEET_SESION_TTL: "1h" };
  const serving = await serve(fleet, { env: { ...slips, COPILOTFLEET_SERVICE_HOST: "10.0.0.1" } });
  const warnings = serving.log().filter(({ msg }) => msg?.includes("unknown variables"));
  expect(warnings).toMatchObject([
    {
      level: "warn",
      msg:
        "unknown variables are ignored: COPILOTFLEET_HOST_NMAE (did you mean COPILOTFLEET_HOST_NAME?), " +
        "COPILOTFLEET_SESION_TTL (did you mean COPILOTFLEET_SESSION_TTL?)",
    },
  ]);
  expect(serving.log()[0]).toEqual(warnings[0]);
  await serving.end();

  const quiet = await serve(fleet);
  expect(quiet.log().filter(({ msg }) => msg?.includes("unknown variables"))).toEqual([]);
  await quiet.end();
});
