import { expect, it } from "vitest";
import { renderCompose } from "../../src/deploy/compose.js";
import { renderKubernetes } from "../../src/deploy/kubernetes.js";
import { renderSystemd } from "../../src/deploy/systemd.js";
import { CONTAINERS, configured, KUBERNETES } from "./render.js";

it.each([
  ["mode", "bwrap"],
  ["network", "none"],
  ["network", "allow-list"],
])("each deployment that forbids namespaces refuses sandbox.%s %j, which needs them", (key, value) => {
  const { config, given } = configured({ COPILOTFLEET_PROVIDER_TYPE: "echo" });
  const loaded = { config: { ...config, sandbox: { ...config.sandbox, [key]: value } }, given };
  const refused = {
    code: "FLEET_CONFIG_INVALID",
    message: expect.stringMatching(new RegExp(`^sandbox\\.${key} is "${value}", .* forbids`)),
  };
  const units = { command: "/usr/local/bin/copilotfleet", user: "copilotfleet" };
  expect(() => renderSystemd(loaded, units)).toThrow(expect.objectContaining(refused));
  expect(() => renderCompose(loaded, CONTAINERS)).toThrow(expect.objectContaining(refused));
  expect(() => renderKubernetes(loaded, KUBERNETES)).toThrow(expect.objectContaining(refused));
  expect(() => renderKubernetes(loaded, { ...KUBERNETES, "runtime-class": "kata" })).not.toThrow();
});
