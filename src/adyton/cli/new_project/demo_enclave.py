"""The confidential program: it encrypts the message that it is entered with."""

from adyton import trusted

KEY = bytes(range(16))  # a demo's key; a real program gets its keys from where only attested enclaves do


class Demo(trusted.TrustedApplication):
    """One instance per enclave; `run` is called for each EnclaveClient.enter_and_run, by several threads at once."""

    def initialize(self, config: trusted.EnclaveConfig) -> None:
        self._cryptor = trusted.AeadCryptor.aes_gcm_siv(KEY)

    def run(self, enclave_input: trusted.EnclaveInput) -> trusted.EnclaveOutput:
        message = enclave_input.Extensions[trusted.user_message]
        enclave_output = trusted.EnclaveOutput()
        enclave_output.Extensions[trusted.user_message] = self._cryptor.seal(message.encode()).hex()
        return enclave_output
