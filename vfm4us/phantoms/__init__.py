"""Synthetic ultrasound with known answers: seven organs, three planes each, lesions with masks, low/high quality.

Lets every script run without a download, and tests what a network learns where the truth is known. It simulates how a
scanner makes a picture. Depth d runs along the beam, x across it:

1. Anatomy is drawn on the beam grid as backscatter (dB), attenuation (dB/cm/MHz) and impedance, from random ellipses,
   tubes, layers and fibres. A virtual patient shares its parameters over three planes.
2. Scatterers: circular complex Gaussian times 10^(backscatter/20), i.e. fully developed speckle, whose envelope is
   Rayleigh with mean/std = 1.91 (Burckhardt 1978; Wagner 1983). Specular echoes: |grad impedance| * cos^3 of the angle
   between beam and interface normal.
3. Attenuation on both ways, A(d) = 2 f * integral of alpha (dB), f in MHz (Szabo, Diagnostic Ultrasound Imaging):
   stone, bone or dense tumour leave a shadow, fluid an enhancement, as the time-gain compensation expects tissue.
4. Point spread, Gaussian to first order: axial sigma = 0.425 * cycles * lambda / 2; lateral
   sigma(d) = 0.425 * lambda * F * sqrt(1 + ((d - focus) / (7 lambda F^2))^2), lambda = 1.54 / f mm, F the f-number,
   7 lambda F^2 the depth of field (Cobbold, Foundations of Biomedical Ultrasound), plus a side-lobe pedestal.
5. Electronic noise before the compensation, so it rises with depth; envelope; log compression
   grey = 255 * (1 + 20 log10(envelope / reference) / dynamic range); scan conversion to a sector or a rectangle.
The low-quality image has the same scatterers, a lower frequency, a larger f-number, more clutter and noise, fewer bits.
"""
